// One pass over all trained weights: AdamW with decoupled decay as torch computes it, from gradients in bfloat16 or float32 to
// masters in float32. Of a model in bfloat16 the weight is the upper half of its master, rounded; the rest stands beside it.

#include "native.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace lushan;

constexpr int64_t PIECE = 1 << 15;  // numbers that a thread takes at once
constexpr int64_t SUMMED = 1 << 10;  // squares that float32 adds up well

struct Piece {
  const Moved *weight;
  int64_t start, end;
};

std::vector<Piece> pieces_of(const Moved *weights, int64_t num_weights) {
  std::vector<Piece> pieces;
  for (const Moved *each = weights; each < weights + num_weights; each++)
    for (int64_t start = 0; start < each->count; start += PIECE)
      pieces.push_back({each, start, std::min(start + PIECE, each->count)});
  return pieces;
}

inline __m512 gradient_at(const Moved &weight, int64_t at, __mmask16 mask) {
  if (weight.is_half) return widen(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)weight.gradient + at));
  return _mm512_maskz_loadu_ps(mask, (const float *)weight.gradient + at);
}

__m512 master_at(const Moved &weight, int64_t at, __mmask16 mask) {
  if (!weight.shown) return _mm512_maskz_loadu_ps(mask, (const float *)weight.master + at);
  __m512i upper = (__m512i)widen(_mm256_maskz_loadu_epi16(mask, weight.shown + at));
  __m512i rest = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, (const int16_t *)weight.master + at));
  return (__m512)_mm512_add_epi32(upper, rest);
}

void keep_master(const Moved &weight, int64_t at, __mmask16 mask, __m512 master) {
  if (!weight.shown) return _mm512_mask_storeu_ps((float *)weight.master + at, mask, master);
  __m512i bits = (__m512i)master, upper = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), 16);
  __m512i rest = _mm512_sub_epi32(bits, _mm512_slli_epi32(upper, 16));
  _mm256_mask_storeu_epi16(weight.shown + at, mask, _mm512_cvtepi32_epi16(upper));
  _mm256_mask_storeu_epi16((int16_t *)weight.master + at, mask, _mm512_cvtepi32_epi16(rest));
}

void move(const Piece &piece, double scale, double beta1, double beta2, double epsilon, int64_t step) {
  const Moved &weight = *piece.weight;
  const double correction1 = 1 - std::pow(beta1, (double)step), correction2 = 1 - std::pow(beta2, (double)step);
  const __m512 by = _mm512_set1_ps((float)scale), kept = _mm512_set1_ps((float)(1 - weight.rate * weight.decay));
  const __m512 first_share = _mm512_set1_ps((float)(1 - beta1));
  const __m512 second_kept = _mm512_set1_ps((float)beta2), second_share = _mm512_set1_ps((float)(1 - beta2));
  const __m512 size = _mm512_set1_ps((float)(-weight.rate / correction1));
  const __m512 root = _mm512_set1_ps((float)std::sqrt(correction2)), least = _mm512_set1_ps((float)epsilon);
  for (int64_t at = piece.start; at < piece.end; at += 16) {
    const __mmask16 mask = there(0, piece.end, at);
    __m512 gradient = _mm512_mul_ps(gradient_at(weight, at, mask), by);
    __m512 first = _mm512_maskz_loadu_ps(mask, weight.first_moment + at);
    __m512 second = _mm512_maskz_loadu_ps(mask, weight.second_moment + at);
    __m512 master = _mm512_mul_ps(master_at(weight, at, mask), kept);
    first = _mm512_fmadd_ps(_mm512_sub_ps(gradient, first), first_share, first);
    second = _mm512_fmadd_ps(_mm512_mul_ps(gradient, gradient), second_share, _mm512_mul_ps(second, second_kept));
    __m512 below = _mm512_add_ps(_mm512_div_ps(_mm512_sqrt_ps(second), root), least);
    master = _mm512_fmadd_ps(_mm512_div_ps(first, below), size, master);
    _mm512_mask_storeu_ps(weight.first_moment + at, mask, first);
    _mm512_mask_storeu_ps(weight.second_moment + at, mask, second);
    keep_master(weight, at, mask, master);
  }
}

}  // namespace

// Adds what a part of a step has found to the total; to `first`, where there is no total yet.
extern "C" void lushan_add_gradient(float *total, const uint16_t *first, const uint16_t *found, int64_t count, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && count > PIECE) schedule(static)
  for (int64_t at = 0; at < count; at += 16) {
    const __mmask16 mask = there(0, count, at);
    __m512 before = first ? widen(_mm256_maskz_loadu_epi16(mask, first + at)) : _mm512_maskz_loadu_ps(mask, total + at);
    _mm512_mask_storeu_ps(total + at, mask, _mm512_add_ps(before, widen(_mm256_maskz_loadu_epi16(mask, found + at))));
  }
}

// `scale` is that of the gradients; `step` counts from 1.
extern "C" void lushan_adamw(const Moved *weights, int64_t num_weights, double scale, double beta1, double beta2,
                             double epsilon, int64_t step, int num_threads) {
  const std::vector<Piece> pieces = pieces_of(weights, num_weights);
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(dynamic)
  for (size_t each = 0; each < pieces.size(); each++) move(pieces[each], scale, beta1, beta2, epsilon, step);
}

// The norm of all gradients together; the same with any number of threads.
extern "C" double lushan_gradient_norm(const Moved *weights, int64_t num_weights, int num_threads) {
  const std::vector<Piece> pieces = pieces_of(weights, num_weights);
  std::vector<double> squares(pieces.size());
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(dynamic)
  for (size_t each = 0; each < pieces.size(); each++) {
    const Piece &piece = pieces[each];
    for (int64_t start = piece.start; start < piece.end; start += SUMMED) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t at = start; at < std::min(start + SUMMED, piece.end); at += 16) {
        __m512 gradient = gradient_at(*piece.weight, at, there(0, piece.end, at));
        sum = _mm512_fmadd_ps(gradient, gradient, sum);
      }
      squares[each] += _mm512_reduce_add_ps(sum);
    }
  }
  double total = 0;
  for (double each : squares) total += each;
  return std::sqrt(total);
}
