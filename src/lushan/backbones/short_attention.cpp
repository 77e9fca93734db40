// Attention inside of short documents, forward and backward (longer ones: `block_attention.cpp`): everything of a document and a head of keys stays in the cache.
//
// Scores, weights and sums are float32. A table holds rows behind each other; a turned one holds them side by side.

#include "documents.h"

#include <vector>

namespace {

using namespace lushan;

constexpr int AT_ONCE = 4;        // rows whose sums stay in registers
constexpr int64_t SHORT = 64;  // tokens; longer documents go by blocks
enum Place { WIDENED = 16, WEIGHTS };  // of `scratch`

// [key][width] to [width][padded], with 0 behind the last key.
void turn_keys(const Head &head, const uint16_t *from, float *into) {
  const int64_t width = head.job.width, padded = head.padded();
  for (int64_t key = 0; key < head.length; key++) {
    const uint16_t *row = from + head.key(key);
    for (int64_t at = 0; at < width; at++) {
      uint32_t bits = (uint32_t)row[at] << 16;
      into[at * padded + key] = *(float *)&bits;
    }
  }
  for (int64_t at = 0; at < width; at++) std::fill(into + at * padded + head.length, into + (at + 1) * padded, 0.0f);
}

void widen_row(const uint16_t *from, float *into, int64_t width) {
  for (int64_t at = 0; at < width; at += 16) _mm512_storeu_ps(into + at, widen(from + at));
}

void widen_queries(const Head &head, const uint16_t *from, float *into) {
  for (int64_t row = 0; row < head.rows(); row++) widen_row(from + head.query(row), into + row * head.job.width, head.job.width);
}

void widen_keys(const Head &head, const uint16_t *from, float *into) {
  for (int64_t key = 0; key < head.length; key++) widen_row(from + head.key(key), into + key * head.job.width, head.job.width);
}

// Products of rows with the keys [from, end) of a turned table; both are multiples of 16.
template <int ROWS>
void score(const float *rows, const float *turned, float *scores, int64_t width, int64_t padded, int64_t from, int64_t end) {
  for (int64_t key = from; key < end; key += 32) {
    const bool has_two = key + 16 < end;
    __m512 sums[ROWS][2] = {};
    for (int64_t at = 0; at < width; at++) {
      const float *line = turned + at * padded + key;
      __m512 one = _mm512_loadu_ps(line), two = has_two ? _mm512_loadu_ps(line + 16) : one;
#pragma GCC unroll 4
      for (int row = 0; row < ROWS; row++) {
        __m512 number = _mm512_set1_ps(rows[row * width + at]);
        sums[row][0] = _mm512_fmadd_ps(number, one, sums[row][0]);
        sums[row][1] = _mm512_fmadd_ps(number, two, sums[row][1]);
      }
    }
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++) {
      _mm512_storeu_ps(scores + row * padded + key, sums[row][0]);
      if (has_two) _mm512_storeu_ps(scores + row * padded + key + 16, sums[row][1]);
    }
  }
}

// Sums over [from, end) of a table's rows, each times a share; the shares of a sum are `step` apart, those of the next `next`.
template <int ROWS, int VECTORS>
void average(const float *shares, int64_t next, int64_t step, const float *table, float *sums, int64_t width, int64_t from,
             int64_t end) {
  for (int64_t at = 0; at < width; at += 16 * VECTORS) {
    __m512 made[ROWS][VECTORS] = {};
    for (int64_t each = from; each < end; each++) {
      __m512 numbers[VECTORS];
#pragma GCC unroll 4
      for (int part = 0; part < VECTORS; part++) numbers[part] = _mm512_loadu_ps(table + each * width + at + part * 16);
#pragma GCC unroll 4
      for (int row = 0; row < ROWS; row++) {
        __m512 share = _mm512_set1_ps(shares[row * next + each * step]);
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; part++) made[row][part] = _mm512_fmadd_ps(share, numbers[part], made[row][part]);
      }
    }
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
      for (int part = 0; part < VECTORS; part++) _mm512_storeu_ps(sums + row * width + at + part * 16, made[row][part]);
  }
}

void average(int64_t count, const float *shares, int64_t next, int64_t step, const float *table, float *sums, int64_t width,
             int64_t from, int64_t end) {
  const bool is_wide = width % 64 == 0;
  if (count == AT_ONCE)
    return is_wide ? average<AT_ONCE, 4>(shares, next, step, table, sums, width, from, end)
                   : average<AT_ONCE, 1>(shares, next, step, table, sums, width, from, end);
  for (int64_t row = 0; row < count; row++)
    is_wide ? average<1, 4>(shares + row * next, next, step, table, sums + row * width, width, from, end)
            : average<1, 1>(shares + row * next, next, step, table, sums + row * width, width, from, end);
}

void score(const Head &head, int64_t count, const float *rows, const float *turned, float *scores, const Seen &seen) {
  const int64_t width = head.job.width, padded = head.padded();
  if (count == AT_ONCE) return score<AT_ONCE>(rows, turned, scores, width, padded, seen.from, seen.end);
  for (int64_t row = 0; row < count; row++)
    score<1>(rows + row * width, turned, scores + row * padded, width, padded, seen.from, seen.end);
}

void forward(const Head &head) {
  const TrainedDocuments &job = head.job;
  const int64_t width = job.width, padded = head.padded(), length = head.length;
  float *turned = (float *)scratch(WIDENED, (width * padded + (length + 2 * AT_ONCE) * width) * sizeof(float));
  float *values = turned + width * padded, *rows = values + length * width, *made = rows + AT_ONCE * width;
  float *scores = (float *)scratch(WEIGHTS, AT_ONCE * padded * sizeof(float));
  turn_keys(head, job.keys, turned);
  widen_keys(head, job.values, values);
  for (int64_t row = 0; row < head.rows(); row += AT_ONCE) {
    const int64_t count = std::min<int64_t>(AT_ONCE, head.rows() - row);
    const Seen seen(head, row, count);
    for (int64_t each = 0; each < count; each++) widen_row(job.queries + head.query(row + each), rows + each * width, width);
    score(head, count, rows, turned, scores, seen);
    for (int64_t each = 0; each < count; each++) weigh(head, row + each, scores + each * padded, seen);
    average(count, scores, padded, 1, values, made, width, seen.from, std::min(seen.end, length));
    for (int64_t each = 0; each < count; each++) write(made + each * width, job.outputs + head.query(row + each), width);
  }
}

void backward(const Head &head) {
  const TrainedDocuments &job = head.job;
  const int64_t width = job.width, padded = head.padded(), length = head.length, num_rows = head.rows();
  const int64_t numbers = 2 * width * padded + (length + 2 * num_rows + AT_ONCE) * width;
  float *turned_keys = (float *)scratch(WIDENED, numbers * sizeof(float)), *turned_values = turned_keys + width * padded;
  float *keys = turned_values + width * padded, *queries = keys + length * width;
  float *gradients = queries + num_rows * width, *made = gradients + num_rows * width;
  float *weights = (float *)scratch(WEIGHTS, 2 * num_rows * padded * sizeof(float)), *back = weights + num_rows * padded;
  std::fill(weights, weights + 2 * num_rows * padded, 0.0f);  // keys that a row does not see are summed over too
  turn_keys(head, job.keys, turned_keys);
  turn_keys(head, job.values, turned_values);
  widen_keys(head, job.keys, keys);
  widen_queries(head, job.queries, queries);
  widen_queries(head, job.gradients, gradients);
  for (int64_t row = 0; row < num_rows; row += AT_ONCE) {
    const int64_t count = std::min<int64_t>(AT_ONCE, num_rows - row);
    const Seen seen(head, row, count);
    float *own = weights + row * padded, *own_back = back + row * padded;
    score(head, count, queries + row * width, turned_keys, own, seen);
    score(head, count, gradients + row * width, turned_values, own_back, seen);
    for (int64_t each = 0; each < count; each++) {
      weigh(head, row + each, own + each * padded, seen);
      weigh_back(head, own + each * padded, own_back + each * padded, seen);
    }
    average(count, own_back, padded, 1, keys, made, width, seen.from, std::min(seen.end, length));
    for (int64_t each = 0; each < count; each++)
      write(made + each * width, job.query_gradients + head.query(row + each), width);
  }
  for (int64_t key = 0; key < length; key += AT_ONCE) {
    const int64_t count = std::min<int64_t>(AT_ONCE, length - key);
    // The first row that sees one of these keys, and the last.
    const int64_t behind = job.window ? std::min(length, key + count - 1 + job.window) : length;
    const int64_t before = job.causal ? key : job.window ? std::max<int64_t>(0, key + 1 - job.window) : 0;
    const int64_t from = before * head.shared(), end = behind * head.shared();
    average(count, back + key, 1, padded, queries, made, width, from, end);
    for (int64_t each = 0; each < count; each++) write(made + each * width, job.key_gradients + head.key(key + each), width);
    average(count, weights + key, 1, padded, gradients, made, width, from, end);
    for (int64_t each = 0; each < count; each++) write(made + each * width, job.value_gradients + head.key(key + each), width);
  }
}

using Run = void (*)(const Head &);

void for_all(const TrainedDocuments &job, Run run, Run run_long, int num_threads) {
  std::vector<int64_t> starts(job.num_documents + 1);
  for (int64_t each = 0; each < job.num_documents; each++) starts[each + 1] = starts[each] + job.lengths[each];
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(dynamic)
  for (int64_t each = job.num_documents * job.num_key_heads - 1; each >= 0; each--) {  // the last are the longest
    const int64_t document = each / job.num_key_heads, length = job.lengths[document];
    (length > SHORT ? run_long : run)(Head{job, each % job.num_key_heads, starts[document], length});
  }
}

}  // namespace

extern "C" void lushan_attend_trained(const lushan::TrainedDocuments *job, int num_threads) {
  for_all(*job, forward, attend_in_blocks, num_threads);
}

extern "C" void lushan_attend_trained_backward(const lushan::TrainedDocuments *job, int num_threads) {
  for_all(*job, backward, attend_in_blocks_backward, num_threads);
}
