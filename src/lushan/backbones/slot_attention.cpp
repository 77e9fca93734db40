// One decoding step's attention: the new token of every text looks at the filled part of its slot, and at nothing else.
//
// The token's key and value are put into the slot first. Numbers are bfloat16, scores and sums float32. The query heads
// that share a key head go through its keys together.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// Addresses, then sizes and distances in numbers; the same order stands in `native.py`.
struct SlotJob {
  const uint16_t *queries, *keys, *values;  // of the new tokens
  uint16_t *key_table, *value_table;
  const int64_t *positions;  // of the new token of each text
  uint16_t *outputs;         // [texts][heads][width]
  int64_t num_texts, num_key_heads, num_shared, width;
  int64_t query_text, query_head, key_text, key_head, value_text, value_head;  // how far each is from the next
  int64_t table_text, table_head;
  int64_t window;  // tokens that a query sees, itself included; 0 for all
  double scaling;
};

namespace {

constexpr int64_t SUMS_AT_ONCE = 4;

inline __m512 widen(const uint16_t *from) {
  __m512i numbers = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(numbers, 16));
}

inline float dot(const uint16_t *a, const uint16_t *b, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t at = 0; at < width; at += 32)
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + at), (__m512bh)_mm512_loadu_si512(b + at));
  return _mm512_reduce_add_ps(sum);
}

// 2 to the whole part, times a polynomial of the rest: right to 2e-7, which float32 rounds to anyway.
inline __m512 exponential(__m512 of) {
  __m512 power = _mm512_mul_ps(of, _mm512_set1_ps(1.44269504f));
  __m512 whole = _mm512_roundscale_ps(power, 0);
  __m512 rest = _mm512_mul_ps(_mm512_sub_ps(power, whole), _mm512_set1_ps(0.69314718f));
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, whole);
}

// Turn scores into weights that add up to 1; behind the last there is room up to a multiple of 16.
void softmax(float *scores, int64_t count) {
  float largest = *std::max_element(scores, scores + count);
  int64_t end = (count + 15) / 16 * 16;
  std::fill(scores + count, scores + end, -INFINITY);
  __m512 total = _mm512_setzero_ps();
  for (int64_t at = 0; at < end; at += 16) {
    __m512 weights = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + at), _mm512_set1_ps(largest)));
    __mmask16 is_there = count - at >= 16 ? 0xffff : (__mmask16)((1u << (count - at)) - 1);
    weights = _mm512_maskz_mov_ps(is_there, weights);
    total = _mm512_add_ps(total, weights);
    _mm512_storeu_ps(scores + at, weights);
  }
  __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int64_t at = 0; at < end; at += 16)
    _mm512_storeu_ps(scores + at, _mm512_mul_ps(_mm512_loadu_ps(scores + at), share));
}

// Average the values by the weights, for up to `SUMS_AT_ONCE` query heads and 16 numbers of the width.
void average(const float *weights, int64_t stride, int64_t heads, const uint16_t *values, int64_t count, int64_t width,
             uint16_t *into) {
  __m512 sums[SUMS_AT_ONCE] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t token = 0; token < count; token++) {
    __m512 value = widen(values + token * width);
    for (int64_t head = 0; head < heads; head++)
      sums[head] = _mm512_fmadd_ps(_mm512_set1_ps(weights[head * stride + token]), value, sums[head]);
  }
  for (int64_t head = 0; head < heads; head++)
    _mm256_storeu_si256((__m256i *)(into + head * width), (__m256i)_mm512_cvtneps_pbh(sums[head]));
}

void attend(const SlotJob &job, int64_t text, int64_t key_head, float *scores, int64_t stride) {
  const int64_t position = job.positions[text], width = job.width;
  uint16_t *keys = job.key_table + text * job.table_text + key_head * job.table_head;
  uint16_t *values = job.value_table + text * job.table_text + key_head * job.table_head;
  std::memcpy(keys + position * width, job.keys + text * job.key_text + key_head * job.key_head, width * 2);
  std::memcpy(values + position * width, job.values + text * job.value_text + key_head * job.value_head, width * 2);
  const int64_t first = job.window ? std::max<int64_t>(0, position + 1 - job.window) : 0;
  const int64_t count = position + 1 - first, first_head = key_head * job.num_shared;
  const uint16_t *queries = job.queries + text * job.query_text + first_head * job.query_head;
  for (int64_t token = 0; token < count; token++)
    for (int64_t head = 0; head < job.num_shared; head++)
      scores[head * stride + token] =
          (float)job.scaling * dot(queries + head * job.query_head, keys + (first + token) * width, width);
  for (int64_t head = 0; head < job.num_shared; head++) softmax(scores + head * stride, count);
  uint16_t *outputs = job.outputs + (text * job.num_key_heads * job.num_shared + first_head) * width;
  for (int64_t head = 0; head < job.num_shared; head += SUMS_AT_ONCE)
    for (int64_t at = 0; at < width; at += 16)
      average(scores + head * stride, stride, std::min(SUMS_AT_ONCE, job.num_shared - head), values + first * width + at,
              count, width, outputs + head * width + at);
}

}  // namespace

extern "C" void lushan_attend(const SlotJob *job, int num_threads) {
  const int64_t longest = *std::max_element(job->positions, job->positions + job->num_texts) + 1;
  const int64_t stride = (longest + 15) / 16 * 16;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    float *scores = (float *)std::aligned_alloc(64, job->num_shared * stride * sizeof(float));
#pragma omp for schedule(dynamic)
    for (int64_t each = 0; each < job->num_texts * job->num_key_heads; each++)
      attend(*job, each / job->num_key_heads, each % job->num_key_heads, scores, stride);
    std::free(scores);
  }
}
