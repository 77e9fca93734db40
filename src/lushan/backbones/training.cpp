// What a decoder layer does between its products while it is trained, forward and backward: norms, rotary positions, gates.
//
// Rows are bfloat16, and so is what is kept of them; inside of a function everything is float32, rounded at its end.

#include "native.h"

#include <algorithm>
#include <cmath>

namespace {

using namespace lushan;

constexpr int64_t FEW_ROWS = 8, FEW_NUMBERS = 8192;  // for which a second thread is not worth its start
enum Place { WEIGHT_GRADIENTS = 20 };                // of `scratch`

}  // namespace

// `sums` is `inputs` + `added`, rounded, where there is something to add; `factors`, for the way back, or none; `outputs` is that, normed by its root mean square. Rounds
// where `transformers` does. `adds_one`: the factors are 1 + `weights`, and nothing is rounded before them (gemma).
extern "C" void lushan_add_and_norm(const uint16_t *inputs, const uint16_t *added, const uint16_t *weights, uint16_t *sums,
                                    uint16_t *outputs, float *factors, int64_t num_rows, int64_t width, double epsilon,
                                    int adds_one, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && num_rows > FEW_ROWS) schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    const uint16_t *from = inputs + row * width;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += 16) {
      __m512 numbers = widen(from + at);
      if (added) {
        numbers = rounded(_mm512_add_ps(numbers, widen(added + row * width + at)));
        store_narrow(sums + row * width + at, numbers);
      }
      squares = _mm512_fmadd_ps(numbers, numbers, squares);
    }
    if (added) from = sums + row * width;
    const float scale = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / (float)width + (float)epsilon);
    if (factors) factors[row] = scale;
    const __m512 factor = _mm512_set1_ps(scale), one = _mm512_set1_ps(1.0f);
    for (int64_t at = 0; at < width; at += 16) {
      __m512 normed = _mm512_mul_ps(widen(from + at), factor), weight = widen(weights + at);
      if (adds_one)
        weight = _mm512_add_ps(weight, one);
      else
        normed = rounded(normed);
      store_narrow(outputs + row * width + at, _mm512_mul_ps(normed, weight));
    }
  }
}

// `inputs` are the rows that were normed, `beside` is what else asks for their gradient, or none; `weight_gradients`, [width], or none.
extern "C" void lushan_norm_backward(const uint16_t *inputs, const uint16_t *weights, const float *factors,
                                     const uint16_t *gradients, const uint16_t *beside, uint16_t *input_gradients,
                                     float *weight_gradients, int64_t num_rows, int64_t width, int adds_one,
                                     int num_threads) {
  const int threads = num_rows > FEW_ROWS ? num_threads : 1;
  float *parts = (float *)scratch(WEIGHT_GRADIENTS, threads * width * sizeof(float));
  if (weight_gradients) std::fill(parts, parts + threads * width, 0.0f);
  const __m512 added = _mm512_set1_ps(adds_one ? 1.0f : 0.0f);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static, 1)
  for (int part = 0; part < threads; part++) {
    float *own = parts + part * width;
    for (int64_t row = num_rows * part / threads; row < num_rows * (part + 1) / threads; row++) {
      const uint16_t *from = inputs + row * width, *back = gradients + row * width;
      __m512 products = _mm512_setzero_ps();
      for (int64_t at = 0; at < width; at += 16) {
        __m512 numbers = widen(from + at), gradient = widen(back + at);
        __m512 scaled = _mm512_mul_ps(gradient, _mm512_add_ps(widen(weights + at), added));
        products = _mm512_fmadd_ps(numbers, scaled, products);
      }
      const float factor = factors[row];
      const __m512 by = _mm512_set1_ps(factor);
      const __m512 towards = _mm512_set1_ps(-_mm512_reduce_add_ps(products) * factor * factor * factor / (float)width);
      for (int64_t at = 0; at < width; at += 16) {
        __m512 numbers = widen(from + at), gradient = widen(back + at);
        __m512 scaled = _mm512_mul_ps(gradient, _mm512_add_ps(widen(weights + at), added));
        __m512 made = _mm512_fmadd_ps(numbers, towards, _mm512_mul_ps(scaled, by));
        if (beside) made = _mm512_add_ps(made, widen(beside + row * width + at));
        store_narrow(input_gradients + row * width + at, made);
        if (weight_gradients) {
          __m512 sum = _mm512_fmadd_ps(_mm512_mul_ps(numbers, by), gradient, _mm512_loadu_ps(own + at));
          _mm512_storeu_ps(own + at, sum);
        }
      }
    }
  }
  if (weight_gradients)
    for (int64_t at = 0; at < width; at++) {
      weight_gradients[at] = 0;
      for (int part = 0; part < threads; part++) weight_gradients[at] += parts[part * width + at];
    }
}

// The gated network between its products: how far each gate is open, times what passes.
extern "C" void lushan_gates(const uint16_t *gates, const uint16_t *ups, uint16_t *outputs, int64_t count, int is_gelu,
                             int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && count > FEW_NUMBERS) schedule(static)
  for (int64_t at = 0; at < count; at += 16)
    store_narrow(outputs + at, _mm512_mul_ps(Gate(widen(gates + at), is_gelu).value, widen(ups + at)));
}

extern "C" void lushan_gates_backward(const uint16_t *gates, const uint16_t *ups, const uint16_t *gradients,
                                      uint16_t *gate_gradients, uint16_t *up_gradients, int64_t count, int is_gelu,
                                      int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && count > FEW_NUMBERS) schedule(static)
  for (int64_t at = 0; at < count; at += 16) {
    Gate gate(widen(gates + at), is_gelu);
    __m512 gradient = widen(gradients + at);
    store_narrow(up_gradients + at, _mm512_mul_ps(gradient, gate.value));
    store_narrow(gate_gradients + at, _mm512_mul_ps(_mm512_mul_ps(gradient, widen(ups + at)), gate.slope));
  }
}

// Turn every head by its place, or back. Rows of `from` and `into` are [heads][width]; cosines and sines [rows][width].
extern "C" void lushan_turn(const uint16_t *from, const uint16_t *cosines, const uint16_t *sines, uint16_t *into,
                            int64_t num_rows, int64_t num_heads, int64_t width, int goes_back, int num_threads) {
  const int64_t half = width / 2;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && num_rows > FEW_ROWS) schedule(static)
  for (int64_t row = 0; row < num_rows; row++) {
    const uint16_t *cosine = cosines + row * width, *sine = sines + row * width;
    for (int64_t at = 0; at < half; at += 16) {
      const __m512 low_cosine = widen(cosine + at), high_cosine = widen(cosine + half + at);
      const __m512 low_sine = widen(sine + at), high_sine = widen(sine + half + at);
      for (int64_t head = 0; head < num_heads; head++) {
        const int64_t place = (row * num_heads + head) * width + at;
        __m512 low = widen(from + place), high = widen(from + place + half);
        __m512 low_made = _mm512_mul_ps(low, low_cosine), high_made = _mm512_mul_ps(high, high_cosine);
        low_made = goes_back ? _mm512_fmadd_ps(high, high_sine, low_made) : _mm512_fnmadd_ps(high, low_sine, low_made);
        high_made = goes_back ? _mm512_fnmadd_ps(low, low_sine, high_made) : _mm512_fmadd_ps(low, high_sine, high_made);
        store_narrow(into + place, low_made);
        store_narrow(into + place + half, high_made);
      }
    }
  }
}
