// Attention inside of longer documents while they are trained on, forward and backward: by blocks of queries with the keys that
// they see, in products of bfloat16, whose sums are float32. Nothing is kept for the way back but what it reads.
//
// A pair is two numbers side by side, of which one instruction multiplies and adds both. Tables, [..] of pairs:
//   across  [keys / 16][width / 2][16]: pairs along the width, of 16 keys side by side
//   along   [rows / 2][width]: pairs of rows that follow each other

#include "documents.h"

namespace {

using namespace lushan;

constexpr int64_t ROWS = 8;    // whose scores are made at once
constexpr int64_t BLOCK = 64;  // rows, between two additions to the gradients of keys and values
constexpr int SUMS = 4;        // rows of sums, of up to 64 numbers, that stay in registers
enum Place { MEMORY = 29 };    // of `scratch`

// Gives parts of one piece of memory, of so many numbers of 4 bytes each.
struct Memory {
  uint32_t *next;

  template <typename Number> Number *take(int64_t count) {
    Number *found = (Number *)next;
    next += (count + 15) / 16 * 16;
    return found;
  }
};

// Keys, or values, with zeros behind the last.
void lay_across(const Head &head, const uint16_t *from, uint32_t *into) {
  const int64_t pairs = head.job.width / 2;
  for (int64_t key = 0; key < head.padded(); key++) {
    const uint32_t *row = (const uint32_t *)(from + head.key(key));
    uint32_t *place = into + (key / 16 * pairs) * 16 + key % 16;
    for (int64_t pair = 0; pair < pairs; pair++) place[pair * 16] = key < head.length ? row[pair] : 0;
  }
}

// Rows one and two; none is zeros.
void lay_along(const uint16_t *one, const uint16_t *two, uint32_t *into, int64_t width) {
  for (int64_t at = 0; at < width; at += 16) {
    __m512i low = one ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(one + at))) : _mm512_setzero_si512();
    __m512i high = two ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(two + at))) : _mm512_setzero_si512();
    _mm512_storeu_si512(into + at, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

void lay_keys_along(const Head &head, const uint16_t *from, uint32_t *into) {
  for (int64_t key = 0; key < head.padded(); key += 2) {
    const uint16_t *one = key < head.length ? from + head.key(key) : nullptr;
    const uint16_t *two = key + 1 < head.length ? from + head.key(key + 1) : nullptr;
    lay_along(one, two, into + key / 2 * head.job.width, head.job.width);
  }
}

void lay_queries_along(const Head &head, const uint16_t *from, int64_t row, int64_t count, uint32_t *into) {
  for (int64_t each = 0; each < count; each += 2) {
    const uint16_t *two = each + 1 < count ? from + head.query(row + each + 1) : nullptr;
    lay_along(from + head.query(row + each), two, into + each / 2 * head.job.width, head.job.width);
  }
}

// Products of rows with the keys that are seen; `scores` is [COUNT][padded].
template <int COUNT> void score(const Head &head, int64_t row, const uint16_t *rows, const uint32_t *across, float *scores, const Seen &seen) {
  const int64_t pairs = head.job.width / 2, padded = head.padded();
  const uint16_t *from[COUNT];
  for (int each = 0; each < COUNT; each++) from[each] = rows + head.query(row + each);
  for (int64_t key = seen.from; key < seen.end; key += 32) {
    const bool has_two = key + 16 < seen.end;
    const uint32_t *one = across + key * pairs, *two = has_two ? one + 16 * pairs : one;
    __m512 sums[COUNT][2] = {};
    for (int64_t pair = 0; pair < pairs; pair++) {
      const __m512i first = _mm512_loadu_si512(one + pair * 16), second = _mm512_loadu_si512(two + pair * 16);
#pragma GCC unroll 8
      for (int each = 0; each < COUNT; each++) {
        const __m512i numbers = pair_at(from[each] + 2 * pair);
        sums[each][0] = add_products(sums[each][0], numbers, first);
        sums[each][1] = add_products(sums[each][1], numbers, second);
      }
    }
#pragma GCC unroll 8
    for (int each = 0; each < COUNT; each++) {
      _mm512_storeu_ps(scores + each * padded + key, sums[each][0]);
      if (has_two) _mm512_storeu_ps(scores + each * padded + key + 16, sums[each][1]);
    }
  }
}

void score(const Head &head, int64_t row, int64_t count, const uint16_t *rows, const uint32_t *across, float *scores, const Seen &seen) {
  if (count == ROWS) return score<ROWS>(head, row, rows, across, scores, seen);
  for (int64_t each = 0; each < count; each++)
    score<1>(head, row + each, rows, across, scores + each * head.padded(), seen);
}

// Adds to `sums`, [COUNT][width], or begins them: over `count` pairs, a share of each times the table's row. Shares of one sum
// are `step` pairs apart, those of the next sum `next`.
template <int COUNT, int VECTORS>
void sum_up(const uint32_t *shares, int64_t next, int64_t step, const uint32_t *along, int64_t count, float *sums, int64_t width, bool begins) {
  for (int64_t at = 0; at < width; at += 16 * VECTORS) {
    __m512 made[COUNT][VECTORS];
#pragma GCC unroll 4
    for (int each = 0; each < COUNT; each++)
#pragma GCC unroll 4
      for (int part = 0; part < VECTORS; part++)
        made[each][part] = begins ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + each * width + at + part * 16);
    for (int64_t pair = 0; pair < count; pair++) {
      __m512i numbers[VECTORS];
#pragma GCC unroll 4
      for (int part = 0; part < VECTORS; part++) numbers[part] = _mm512_loadu_si512(along + pair * width + at + part * 16);
#pragma GCC unroll 4
      for (int each = 0; each < COUNT; each++) {
        const __m512i share = pair_at(shares + each * next + pair * step);
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; part++) made[each][part] = add_products(made[each][part], share, numbers[part]);
      }
    }
#pragma GCC unroll 4
    for (int each = 0; each < COUNT; each++)
#pragma GCC unroll 4
      for (int part = 0; part < VECTORS; part++) _mm512_storeu_ps(sums + each * width + at + part * 16, made[each][part]);
  }
}

void sum_up(int64_t num_sums, const uint32_t *shares, int64_t next, int64_t step, const uint32_t *along, int64_t count, float *sums,
            int64_t width, bool begins) {
  const bool is_wide = width % 64 == 0;
  for (int64_t each = 0; each < num_sums; each += SUMS) {
    const uint32_t *own = shares + each * next;
    float *into = sums + each * width;
    if (each + SUMS <= num_sums) {
      is_wide ? sum_up<SUMS, 4>(own, next, step, along, count, into, width, begins)
              : sum_up<SUMS, 1>(own, next, step, along, count, into, width, begins);
      continue;
    }
    for (int64_t rest = 0; rest < num_sums - each; rest++)
      is_wide ? sum_up<1, 4>(own + rest * next, next, step, along, count, into + rest * width, width, begins)
              : sum_up<1, 1>(own + rest * next, next, step, along, count, into + rest * width, width, begins);
  }
}

// Numbers of two rows as pairs along the rows.
void pair_up(const float *one, const float *two, uint32_t *into, const Seen &seen) {
  for (int64_t at = seen.from; at < seen.end; at += 16) {
    __m512i low = _mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(one + at)));
    __m512i high = two ? _mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(two + at))) : _mm512_setzero_si512();
    _mm512_storeu_si512(into + at, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

void narrow_row(const float *from, uint16_t *into, const Seen &seen) {
  for (int64_t at = seen.from; at < seen.end; at += 16) store_narrow(into + at, _mm512_loadu_ps(from + at));
}

// Rows of outputs, or of the gradients of queries: shares of keys, [count][padded] of bfloat16, times what the keys have.
void spread(const Head &head, int64_t row, int64_t count, const uint16_t *shares, const uint32_t *along, float *sums, uint16_t *into, const Seen &seen) {
  const int64_t width = head.job.width, pairs = head.padded() / 2;
  const uint32_t *own = (const uint32_t *)shares + seen.from / 2;
  sum_up(count, own, pairs, 1, along + seen.from / 2 * width, (seen.end - seen.from) / 2, sums, width, true);
  for (int64_t each = 0; each < count; each++) write(sums + each * width, into + head.query(row + each), width);
}

}  // namespace

namespace lushan {

void attend_in_blocks(const Head &head) {
  const TrainedDocuments &job = head.job;
  const int64_t width = job.width, padded = head.padded(), table = padded * width / 2;
  const int64_t numbers = 2 * table + ROWS * (width + padded + padded / 2) + 5 * 16;
  Memory memory{(uint32_t *)scratch(MEMORY, numbers * sizeof(uint32_t))};
  uint32_t *keys = memory.take<uint32_t>(table), *values = memory.take<uint32_t>(table);
  float *scores = memory.take<float>(ROWS * padded), *sums = memory.take<float>(ROWS * width);
  uint16_t *weights = (uint16_t *)memory.take<uint32_t>(ROWS * padded / 2);
  lay_across(head, job.keys, keys);
  lay_keys_along(head, job.values, values);
  for (int64_t row = 0; row < head.rows(); row += ROWS) {
    const int64_t count = std::min(ROWS, head.rows() - row);
    const Seen seen(head, row, count);
    score(head, row, count, job.queries, keys, scores, seen);
    for (int64_t each = 0; each < count; each++) {
      weigh(head, row + each, scores + each * padded, seen);
      narrow_row(scores + each * padded, weights + each * padded, seen);
    }
    spread(head, row, count, weights, values, sums, job.outputs, seen);
  }
}

void attend_in_blocks_backward(const Head &head) {
  const TrainedDocuments &job = head.job;
  const int64_t width = job.width, padded = head.padded(), table = padded * width / 2;
  const int64_t numbers = 3 * table + 2 * padded * width + 2 * ROWS * padded + ROWS * (padded / 2 + width) +
                          2 * (BLOCK / 2) * padded + 2 * (BLOCK / 2) * width + 16 * 16;
  Memory memory{(uint32_t *)scratch(MEMORY, numbers * sizeof(uint32_t))};
  uint32_t *keys = memory.take<uint32_t>(table), *values = memory.take<uint32_t>(table), *keys_along = memory.take<uint32_t>(table);
  float *of_keys = memory.take<float>(padded * width), *of_values = memory.take<float>(padded * width);
  float *scores = memory.take<float>(ROWS * padded), *back = memory.take<float>(ROWS * padded);
  float *sums = memory.take<float>(ROWS * width);
  uint16_t *shares = (uint16_t *)memory.take<uint32_t>(ROWS * padded / 2);
  uint32_t *weight_pairs = memory.take<uint32_t>(BLOCK / 2 * padded), *back_pairs = memory.take<uint32_t>(BLOCK / 2 * padded);
  uint32_t *queries = memory.take<uint32_t>(BLOCK / 2 * width), *gradients = memory.take<uint32_t>(BLOCK / 2 * width);
  std::fill(of_keys, of_keys + padded * width, 0.0f);
  std::fill(of_values, of_values + padded * width, 0.0f);
  lay_across(head, job.keys, keys);
  lay_across(head, job.values, values);
  lay_keys_along(head, job.keys, keys_along);
  for (int64_t start = 0; start < head.rows(); start += BLOCK) {
    const int64_t in_block = std::min(BLOCK, head.rows() - start);
    const Seen seen(head, start, in_block);
    for (int64_t row = start; row < start + in_block; row += ROWS) {
      const int64_t count = std::min(ROWS, start + in_block - row);
      score(head, row, count, job.queries, keys, scores, seen);
      score(head, row, count, job.gradients, values, back, seen);
      for (int64_t each = 0; each < count; each++) {
        weigh(head, row + each, scores + each * padded, seen);
        weigh_back(head, scores + each * padded, back + each * padded, seen);
        narrow_row(back + each * padded, shares + each * padded, seen);
      }
      for (int64_t each = 0; each < count; each += 2) {
        const int64_t next = each + 1 < count ? (each + 1) * padded : -1, place = (row - start + each) / 2 * padded;
        pair_up(scores + each * padded, next < 0 ? nullptr : scores + next, weight_pairs + place, seen);
        pair_up(back + each * padded, next < 0 ? nullptr : back + next, back_pairs + place, seen);
      }
      spread(head, row, count, shares, keys_along, sums, job.query_gradients, seen);
    }
    lay_queries_along(head, job.queries, start, in_block, queries);
    lay_queries_along(head, job.gradients, start, in_block, gradients);
    const int64_t num_pairs = (in_block + 1) / 2, num_keys = seen.end - seen.from, first = seen.from * width;
    sum_up(num_keys, back_pairs + seen.from, 1, padded, queries, num_pairs, of_keys + first, width, false);
    sum_up(num_keys, weight_pairs + seen.from, 1, padded, gradients, num_pairs, of_values + first, width, false);
  }
  for (int64_t key = 0; key < head.length; key++) {
    write(of_keys + key * width, job.key_gradients + head.key(key), width);
    write(of_values + key * width, job.value_gradients + head.key(key), width);
  }
}

}  // namespace lushan
