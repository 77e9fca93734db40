// The root-mean-square norm of rows in bfloat16, in one pass; computed in float32, rounded where `transformers` rounds.

#include "native.h"

#include <cmath>

namespace {

using namespace lushan;

inline __m512 rounded(__m512 numbers) {
  return widen(narrow(numbers));
}

}  // namespace

// `adds_one`: the factors are 1 + `weights`, and nothing is rounded before them (gemma); else what is normed is (llama).
extern "C" void lushan_rms_norm(const uint16_t *inputs, const uint16_t *weights, uint16_t *outputs, int64_t num_rows,
                                int64_t width, double epsilon, int adds_one) {
  for (int64_t row = 0; row < num_rows; row++, inputs += width, outputs += width) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += 16) {
      __m512 numbers = widen(inputs + at);
      sum = _mm512_fmadd_ps(numbers, numbers, sum);
    }
    float mean = _mm512_reduce_add_ps(sum) / (float)width;
    __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + (float)epsilon));
    for (int64_t at = 0; at < width; at += 16) {
      __m512 normed = _mm512_mul_ps(widen(inputs + at), factor), weight = widen(weights + at);
      if (adds_one)
        weight = _mm512_add_ps(weight, _mm512_set1_ps(1.0f));
      else
        normed = rounded(normed);
      _mm256_storeu_si256((__m256i *)(outputs + at), narrow(_mm512_mul_ps(normed, weight)));
    }
  }
}
