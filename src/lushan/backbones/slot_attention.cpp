// One decoding step's attention: the new token of every text looks at the filled part of its slot, and at nothing else.
//
// The token's key and value are put into the slot first. Numbers are bfloat16, scores and sums float32. The query heads
// that share a key head go through its keys together.

#include "native.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

using namespace lushan;

constexpr int64_t TOKENS = 16;    // whose scores are made together
constexpr int64_t HEADS = 4;      // whose values are averaged together,
constexpr int64_t PARTS = 4;      // and as many times 16 numbers of the width: as many sums as registers are left

inline __m512 product(__m512 sum, const uint16_t *a, const uint16_t *b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
}

// Sums of the two, lane by lane in fours; then of fours, and of halves.
inline __m512 add_lanes(__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }

inline __m512 add_pairs(__m512 a, __m512 b) {
  __m512d low = _mm512_unpacklo_pd((__m512d)a, (__m512d)b), high = _mm512_unpackhi_pd((__m512d)a, (__m512d)b);
  return _mm512_add_ps((__m512)low, (__m512)high);
}

inline __m512 add_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// The sum of each of 16 vectors, in their order.
inline __m512 sums_of(__m512 *of) {
  for (int at = 0; at < 8; at++) of[at] = add_lanes(of[2 * at], of[2 * at + 1]);
  for (int at = 0; at < 4; at++) of[at] = add_pairs(of[2 * at], of[2 * at + 1]);
  // A quarter holds what is to be added up, of four vectors each.
  return add_quarters(add_quarters(of[0], of[1]), add_quarters(of[2], of[3]));
}

// Scores of up to 16 tokens; those behind the last are -inf.
inline __m512 scores_of(const uint16_t *query, const uint16_t *keys, int64_t count, int64_t width, float scaling) {
  __m512 sums[TOKENS];
#pragma GCC unroll 16
  for (int64_t token = 0; token < TOKENS; token++) {
    const uint16_t *key = keys + std::min(token, count - 1) * width;
    sums[token] = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += 32) sums[token] = product(sums[token], query + at, key + at);
  }
  __mmask16 is_there = count >= TOKENS ? 0xffff : (__mmask16)((1u << count) - 1);
  return _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), is_there, sums_of(sums), _mm512_set1_ps(scaling));
}

// Turn scores into weights that add up to 1; `end` is a multiple of 16.
void softmax(float *scores, int64_t end) {
  __m512 largest = _mm512_loadu_ps(scores), total = _mm512_setzero_ps();
  for (int64_t at = TOKENS; at < end; at += TOKENS) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + at));
  largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  for (int64_t at = 0; at < end; at += TOKENS) {
    __m512 weights = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + at), largest));
    total = _mm512_add_ps(total, weights);
    _mm512_storeu_ps(scores + at, weights);
  }
  __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int64_t at = 0; at < end; at += TOKENS)
    _mm512_storeu_ps(scores + at, _mm512_mul_ps(_mm512_loadu_ps(scores + at), share));
}

// Average the values by the weights.
template <int COUNT>
void average(const float *weights, int64_t stride, const uint16_t *values, int64_t count, int64_t width, int64_t parts,
             uint16_t *into) {
  __m512 sums[COUNT][PARTS] = {};
  for (int64_t token = 0; token < count; token++) {
    __m512 weight[COUNT];
#pragma GCC unroll 4
    for (int head = 0; head < COUNT; head++) weight[head] = _mm512_set1_ps(weights[head * stride + token]);
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; part++) {
      __m512 value = widen(values + token * width + (part < parts ? part : 0) * 16);
#pragma GCC unroll 4
      for (int head = 0; head < COUNT; head++) sums[head][part] = _mm512_fmadd_ps(weight[head], value, sums[head][part]);
    }
  }
  for (int head = 0; head < COUNT; head++)
    for (int part = 0; part < parts; part++) store_narrow(into + head * width + part * 16, sums[head][part]);
}

// Call the code that is made for this number of heads.
template <int COUNT = HEADS>
void average_heads(int64_t heads, const float *weights, int64_t stride, const uint16_t *values, int64_t count,
                   int64_t width, uint16_t *into) {
  if constexpr (COUNT > 1) {
    if (heads < COUNT) return average_heads<COUNT - 1>(heads, weights, stride, values, count, width, into);
  }
  for (int64_t at = 0; at < width; at += PARTS * 16)
    average<COUNT>(weights, stride, values + at, count, width, std::min(PARTS, (width - at) / 16), into + at);
}

// Memory takes longer than the products: what is looked at next is fetched meanwhile.
inline void fetch(const uint16_t *from, int64_t numbers) {
  for (int64_t at = 0; at < numbers; at += 32) _mm_prefetch((const char *)(from + at), _MM_HINT_T1);
}

void look(const SlotJob &job, int64_t text, int64_t key_head, float *scores, int64_t stride) {
  const int64_t position = job.positions[text], width = job.width;
  uint16_t *keys = job.key_table + text * job.table_text + key_head * job.table_head;
  uint16_t *values = job.value_table + text * job.table_text + key_head * job.table_head;
  std::memcpy(keys + position * width, job.keys + text * job.key_text + key_head * job.key_head, width * 2);
  std::memcpy(values + position * width, job.values + text * job.value_text + key_head * job.value_head, width * 2);
  const int64_t first = job.window ? std::max<int64_t>(0, position + 1 - job.window) : 0;
  const int64_t count = position + 1 - first, first_head = key_head * job.num_shared;
  const uint16_t *queries = job.queries + text * job.query_text + first_head * job.query_head;
  const int64_t step = key_head + 1 < job.num_key_heads ? job.table_head
                                                         : job.table_text - key_head * job.table_head;
  for (int64_t token = 0; token < count; token += TOKENS) {
    fetch(keys + step + (first + token) * width, TOKENS * width);
    fetch(values + step + (first + token) * width, TOKENS * width);
    for (int64_t head = 0; head < job.num_shared; head++)
      _mm512_storeu_ps(scores + head * stride + token,
                       scores_of(queries + head * job.query_head, keys + (first + token) * width, count - token, width,
                                 (float)job.scaling));
  }
  for (int64_t head = 0; head < job.num_shared; head++) softmax(scores + head * stride, (count + TOKENS - 1) / TOKENS * TOKENS);
  uint16_t *outputs = job.outputs + (text * job.num_key_heads * job.num_shared + first_head) * width;
  for (int64_t head = 0; head < job.num_shared; head += HEADS)
    average_heads(std::min(HEADS, job.num_shared - head), scores + head * stride, stride, values + first * width, count,
                  width, outputs + head * width);
}

}  // namespace

namespace lushan {

void attend(const SlotJob &job, int num_threads) {
  const int64_t longest = *std::max_element(job.positions, job.positions + job.num_texts) + 1;
  const int64_t stride = (longest + 15) / 16 * 16;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    float *scores = (float *)scratch(0, job.num_shared * stride * sizeof(float));
#pragma omp for schedule(dynamic)
    for (int64_t each = 0; each < job.num_texts * job.num_key_heads; each++)
      look(job, each / job.num_key_heads, each % job.num_key_heads, scores, stride);
  }
}

}  // namespace lushan

extern "C" void lushan_attend(const lushan::SlotJob *job, int num_threads) { lushan::attend(*job, num_threads); }
