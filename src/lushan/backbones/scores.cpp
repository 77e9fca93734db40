// Scores of the vocabulary: the likeliest token of each row and the logarithm of what their exponentials add up to; and, while a
// model is trained, their cross-entropy, with its gradients in their place.

#include "native.h"

#include <cmath>

namespace {

using namespace lushan;

struct Summary {
  int64_t likeliest;
  float largest, total;
};

// Of equal scores the first is taken.
Summary summarise(const float *scores, int64_t count) {
  const __m512 least = _mm512_set1_ps(-INFINITY);
  auto there = [&](int64_t at) { return count - at >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (count - at)) - 1); };
  __m512 best = least;
  __m512i where = _mm512_setzero_si512();
  for (int64_t at = 0; at < count; at += 16) {
    __m512 numbers = _mm512_mask_loadu_ps(least, there(at), scores + at);
    __mmask16 is_larger = _mm512_cmp_ps_mask(numbers, best, _CMP_GT_OQ);
    best = _mm512_mask_mov_ps(best, is_larger, numbers);
    where = _mm512_mask_mov_epi32(where, is_larger, _mm512_set1_epi32((int)(at / 16)));
  }
  alignas(64) float values[16];
  alignas(64) int32_t blocks[16];
  _mm512_store_ps(values, best);
  _mm512_store_si512(blocks, where);
  Summary found{blocks[0] * 16LL, values[0], 0};
  for (int lane = 1; lane < 16; lane++) {
    int64_t place = blocks[lane] * 16LL + lane;
    if (values[lane] > found.largest || (values[lane] == found.largest && place < found.likeliest))
      found.likeliest = place, found.largest = values[lane];
  }
  __m512 sum = _mm512_setzero_ps(), largest = _mm512_set1_ps(found.largest);
  for (int64_t at = 0; at < count; at += 16)
    sum = _mm512_add_ps(sum, exponential(_mm512_sub_ps(_mm512_mask_loadu_ps(least, there(at), scores + at), largest)));
  found.total = found.largest + std::log(_mm512_reduce_add_ps(sum));
  return found;
}

// Scores are bfloat16, and so is the gradient that takes their place where one is asked for; in between everything is float32.
float cross_entropy(uint16_t *scores, int64_t count, int64_t target, float counts, float scale, bool trains) {
  const __m512 by = _mm512_set1_ps(scale);
  auto scaled = [&](int64_t at) { return _mm512_mul_ps(widen(_mm256_maskz_loadu_epi16(there(0, count, at), scores + at)), by); };
  __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t at = 0; at < count; at += 16) most = _mm512_mask_max_ps(most, there(0, count, at), most, scaled(at));
  const float largest = _mm512_reduce_max_ps(most);
  most = _mm512_set1_ps(largest);
  for (int64_t at = 0; at < count; at += 16)
    sum = _mm512_mask_add_ps(sum, there(0, count, at), sum, exponential(_mm512_sub_ps(scaled(at), most)));
  const uint32_t bits = (uint32_t)scores[target] << 16;
  const float total = _mm512_reduce_add_ps(sum), own = *(const float *)&bits * scale - largest;
  if (!trains) return counts * (std::log(total) - own);
  const __m512 share = _mm512_set1_ps(counts * scale / total);
  const float of_target = counts * scale * (std::exp(own) / total - 1.0f);
  for (int64_t at = 0; at < count; at += 16)
    _mm256_mask_storeu_epi16(scores + at, there(0, count, at), narrow(_mm512_mul_ps(exponential(_mm512_sub_ps(scaled(at), most)), share)));
  scores[target] = (uint16_t)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(of_target)), 0);
  return counts * (std::log(total) - own);
}

}  // namespace

// `counts` is what each row counts; `losses` is written, and the gradients of the scores in their place if `trains`.
extern "C" void lushan_cross_entropy(uint16_t *scores, const int64_t *targets, const float *counts, float *losses, int64_t num_rows,
                                     int64_t width, double scale, int trains, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
  for (int64_t row = 0; row < num_rows; row++)
    losses[row] = cross_entropy(scores + row * width, width, targets[row], counts[row], (float)scale, trains);
}

extern "C" void lushan_summarise(const float *scores, int64_t num_rows, int64_t width, int64_t *likeliest,
                                 float *largest, float *totals, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
  for (int64_t row = 0; row < num_rows; row++) {
    Summary found = summarise(scores + row * width, width);
    likeliest[row] = found.likeliest, largest[row] = found.largest, totals[row] = found.total;
  }
}
