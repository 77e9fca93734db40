// A decoder layer without its attention: norms, products, rotary positions and the gated network in two calls.
//
// What layers add to each other stays float32; queries, keys, values and what attention makes of them are bfloat16.

#include "native.h"

#include <algorithm>
#include <cmath>

namespace {

using namespace lushan;

constexpr int64_t ROWS_AT_ONCE = 256;  // what is between two products stays in the cache
constexpr int64_t MANY_ROWS = 32;      // of a thread, which then takes them from product to product, and waits for no other
enum Place { NORMED = 2, PREPARED, MADE, GATES, UPS, HEADS, ATTENDED };  // of `scratch`; others use 0 and 1

// By the root mean square. `adds_one`: the factors are 1 + `weights` (gemma).
inline void norm(const float *inputs, const uint16_t *weights, float *outputs, int64_t width, double epsilon,
                 bool adds_one) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t at = 0; at < width; at += 16) {
    __m512 numbers = _mm512_loadu_ps(inputs + at);
    sum = _mm512_fmadd_ps(numbers, numbers, sum);
  }
  __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / (float)width + (float)epsilon));
  __m512 added = _mm512_set1_ps(adds_one ? 1.0f : 0.0f);
  for (int64_t at = 0; at < width; at += 16) {
    __m512 weight = _mm512_add_ps(widen(weights + at), added);
    _mm512_storeu_ps(outputs + at, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(inputs + at), factor), weight));
  }
}

void norm_rows(const Layer &layer, const float *inputs, const uint16_t *weights, float *outputs, int64_t rows,
               int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 8)
  for (int64_t row = 0; row < rows; row++)
    norm(inputs + row * layer.width, weights, outputs + row * layer.width, layer.width, layer.epsilon, layer.adds_one);
}

// Turn each head by its place, and narrow it; `sines` and `cosines` are those of one row.
inline void turn(const float *from, const float *cosines, const float *sines, uint16_t *into, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t at = 0; at < half; at += 16) {
    __m512 first = _mm512_loadu_ps(from + at), second = _mm512_loadu_ps(from + half + at);
    __m512 low = _mm512_mul_ps(first, _mm512_loadu_ps(cosines + at));
    __m512 high = _mm512_mul_ps(second, _mm512_loadu_ps(cosines + half + at));
    store_narrow(into + at, _mm512_fnmadd_ps(second, _mm512_loadu_ps(sines + at), low));
    store_narrow(into + half + at, _mm512_fmadd_ps(first, _mm512_loadu_ps(sines + half + at), high));
  }
}

void turn_rows(const Layer &layer, float *from, const uint16_t *weights, int64_t heads, const float *cosines,
               const float *sines, uint16_t *into, int64_t rows, int threads) {
  const int64_t width = layer.head_width;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 8)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t head = 0; head < heads; head++) {
      float *own = from + (row * heads + head) * width;
      if (weights) norm(own, weights, own, width, layer.epsilon, layer.adds_one);
      turn(own, cosines + row * width, sines + row * width, into + (row * heads + head) * width, width);
    }
}

void multiply_gates(float *gates, const float *ups, int64_t count, bool is_gelu, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && count > 8192)
  for (int64_t at = 0; at < count; at += 16) {
    __m512 open = Gate(_mm512_loadu_ps(gates + at), is_gelu).value;
    _mm512_storeu_ps(gates + at, _mm512_mul_ps(open, _mm512_loadu_ps(ups + at)));
  }
}

template <int ROWS>
void add_low_rank(const LowRank &added, const float *inputs, float *outputs, int64_t num_inputs, int64_t num_outputs) {
  for (int64_t rank = 0; rank < added.rank; rank++) {
    const uint16_t *down = added.down + rank * num_inputs, *up = added.up + rank * num_outputs;
    __m512 sums[ROWS] = {};
    for (int64_t at = 0; at < num_inputs; at += 16) {
      __m512 numbers = widen(down + at);
#pragma GCC unroll 4
      for (int row = 0; row < ROWS; row++)
        sums[row] = _mm512_fmadd_ps(_mm512_loadu_ps(inputs + row * num_inputs + at), numbers, sums[row]);
    }
    __m512 narrow[ROWS];
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++) narrow[row] = _mm512_set1_ps(_mm512_reduce_add_ps(sums[row]));
    for (int64_t at = 0; at < num_outputs; at += 16) {
      __m512 numbers = widen(up + at);
#pragma GCC unroll 4
      for (int row = 0; row < ROWS; row++) {
        float *own = outputs + row * num_outputs + at;
        _mm512_storeu_ps(own, _mm512_fmadd_ps(narrow[row], numbers, _mm512_loadu_ps(own)));
      }
    }
  }
}

// A linear layer, with what the adapters of the rows add; `first` is the number of the first row in the pass.
void linear(const Matrix &matrix, Linear which, const Adapted *adapted, int64_t first, const float *rows,
            const Inputs &inputs, float *outputs, int threads) {
  multiply(matrix, inputs, outputs, true, threads);
  if (!adapted) return;
  const int32_t *owners = adapted->owners + first;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t row = 0; row < inputs.num_rows; row += 4) {
    const int64_t end = std::min<int64_t>(row + 4, inputs.num_rows);
    const bool is_one = end - row == 4 && std::equal(owners + row, owners + end - 1, owners + row + 1);
    for (int64_t each = row; each < (is_one ? row + 1 : end); each++) {
      if (owners[each] < 0) continue;
      const LowRank &added = adapted->matrices[owners[each] * NUM_LINEARS + which];
      const float *from = rows + each * matrix.num_inputs;
      float *into = outputs + each * matrix.num_outputs;
      if (is_one)
        add_low_rank<4>(added, from, into, matrix.num_inputs, matrix.num_outputs);
      else
        add_low_rank<1>(added, from, into, matrix.num_inputs, matrix.num_outputs);
    }
  }
}

float *floats(Place place, int64_t count) { return (float *)scratch(place, count * sizeof(float)); }

// `residual` plus what a product made, normed before where the layer says so.
void add(const Layer &layer, float *made, const uint16_t *weights, const float *residual, float *into, int64_t rows,
         int threads) {
  if (weights) norm_rows(layer, made, weights, made, rows, threads);
  for (int64_t at = 0; at < rows * layer.width; at += 16)
    _mm512_storeu_ps(into + at, _mm512_add_ps(_mm512_loadu_ps(residual + at), _mm512_loadu_ps(made + at)));
}

void before_attention(const Layer &layer, const Adapted *adapted, int64_t first, const float *residual, int64_t rows,
                      const float *cosines, const float *sines, uint16_t *queries, uint16_t *keys, uint16_t *values,
                      int threads) {
  float *normed = floats(NORMED, rows * layer.width);
  norm_rows(layer, residual, layer.norm_before_attention, normed, rows, threads);
  Inputs inputs = prepare(normed, rows, layer.width, layer.query.form, PREPARED);
  float *made = floats(MADE, rows * layer.query.num_outputs);
  linear(layer.value, VALUE, adapted, first, normed, inputs, made, threads);
  for (int64_t at = 0; at < rows * layer.value.num_outputs; at += 16) store_narrow(values + at, _mm512_loadu_ps(made + at));
  linear(layer.query, QUERY, adapted, first, normed, inputs, made, threads);
  turn_rows(layer, made, layer.query_norm, layer.num_heads, cosines, sines, queries, rows, threads);
  linear(layer.key, KEY, adapted, first, normed, inputs, made, threads);
  turn_rows(layer, made, layer.key_norm, layer.num_key_heads, cosines, sines, keys, rows, threads);
}

void after_attention(const Layer &layer, const Adapted *adapted, int64_t first, const uint16_t *attended,
                     const float *residual, float *outputs, int64_t rows, int threads) {
  const int64_t attended_width = layer.output.num_inputs, inner = layer.inner_width;
  float *widened = floats(GATES, rows * std::max(attended_width, inner));
  for (int64_t at = 0; at < rows * attended_width; at += 16) _mm512_storeu_ps(widened + at, widen(attended + at));
  float *made = floats(MADE, rows * layer.width);
  Inputs inputs = prepare(widened, rows, attended_width, layer.output.form, PREPARED);
  linear(layer.output, OUTPUT, adapted, first, widened, inputs, made, threads);
  add(layer, made, layer.norm_after_attention, residual, outputs, rows, threads);
  float *normed = floats(NORMED, rows * layer.width);
  norm_rows(layer, outputs, layer.norm_before_network, normed, rows, threads);
  inputs = prepare(normed, rows, layer.width, layer.gate.form, PREPARED);
  float *gates = widened, *ups = floats(UPS, rows * inner);
  linear(layer.gate, GATE, adapted, first, normed, inputs, gates, threads);
  linear(layer.up, UP, adapted, first, normed, inputs, ups, threads);
  multiply_gates(gates, ups, rows * inner, layer.is_gelu, threads);
  inputs = prepare(gates, rows, inner, layer.down.form, PREPARED);
  linear(layer.down, DOWN, adapted, first, gates, inputs, made, threads);
  add(layer, made, layer.norm_after_network, outputs, outputs, rows, threads);
}

// Calls `work(row, rows, threads)` for all rows: many are shared out among threads, few are worked on by all of them together. The
// latter stand outside of any parallel region, even one of a single thread: inside, every product would start threads of its own.
template <typename Work> void in_pieces(int64_t num_rows, int threads, Work work) {
  const bool shares = threads > 1 && num_rows >= threads * MANY_ROWS;
  const int64_t workers = shares ? threads : 1, rounds = (num_rows + workers * ROWS_AT_ONCE - 1) / (workers * ROWS_AT_ONCE);
  const int64_t pieces = std::max<int64_t>(1, rounds * workers);
  const int64_t rows = std::max<int64_t>(8, ((num_rows + pieces - 1) / pieces + 7) / 8 * 8);
  if (!shares) {
    for (int64_t row = 0; row < num_rows; row += rows) work(row, std::min(rows, num_rows - row), threads);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < num_rows; row += rows) work(row, std::min(rows, num_rows - row), 1);
}

}  // namespace

// `residual` is [rows][width]; `cosines` and `sines` [rows][head_width]; the others [rows][heads][head_width].
extern "C" void lushan_before_attention(const Layer *layer, const Adapted *adapted, const float *residual,
                                        int64_t num_rows, const float *cosines, const float *sines, uint16_t *queries,
                                        uint16_t *keys, uint16_t *values, int num_threads) {
  const int64_t own = layer->num_heads * layer->head_width, shared = layer->num_key_heads * layer->head_width;
  in_pieces(num_rows, num_threads, [=](int64_t row, int64_t rows, int threads) {
    before_attention(*layer, adapted, row, residual + row * layer->width, rows, cosines + row * layer->head_width,
                     sines + row * layer->head_width, queries + row * own, keys + row * shared, values + row * shared,
                     threads);
  });
}

extern "C" void lushan_after_attention(const Layer *layer, const Adapted *adapted, const uint16_t *attended,
                                       const float *residual, float *outputs, int64_t num_rows, int num_threads) {
  const int64_t own = layer->num_heads * layer->head_width;
  in_pieces(num_rows, num_threads, [=](int64_t row, int64_t rows, int threads) {
    after_attention(*layer, adapted, row, attended + row * own, residual + row * layer->width, outputs + row * layer->width,
                    rows, threads);
  });
}

// One decoding step through layers that follow each other: a row is the new token of a text.
extern "C" void lushan_step(const StepLayer *layers, int64_t num_layers, const float *residual, float *outputs,
                            const float *cosines, const float *sines, const int64_t *positions, int64_t num_texts,
                            int64_t table_text, int64_t table_head, int num_threads) {
  for (const StepLayer *each = layers; each < layers + num_layers; each++, residual = outputs) {
    const Layer &layer = *each->layer;
    const int64_t width = layer.head_width, own = layer.num_heads * width, shared = layer.num_key_heads * width;
    uint16_t *queries = (uint16_t *)scratch(HEADS, num_texts * (own + 2 * shared) * 2);
    uint16_t *keys = queries + num_texts * own, *values = keys + num_texts * shared;
    uint16_t *attended = (uint16_t *)scratch(ATTENDED, num_texts * own * 2);
    lushan_before_attention(&layer, each->adapted, residual, num_texts, cosines, sines, queries, keys, values, num_threads);
    SlotJob job{queries, keys, values, each->key_table, each->value_table, positions, attended};
    job.num_texts = num_texts, job.num_key_heads = layer.num_key_heads, job.width = width;
    job.num_shared = layer.num_heads / layer.num_key_heads;
    job.query_text = own, job.key_text = job.value_text = shared;
    job.query_head = job.key_head = job.value_head = width;
    job.table_text = table_text, job.table_head = table_head;
    job.window = each->window, job.scaling = each->scaling;
    attend(job, num_threads);
    lushan_after_attention(&layer, each->adapted, attended, residual, outputs, num_texts, num_threads);
  }
}

// What layers made, as heads and the vocabulary take it.
extern "C" void lushan_norm(const float *inputs, const uint16_t *weights, uint16_t *outputs, int64_t num_rows,
                            int64_t width, double epsilon, int adds_one) {
  float *normed = floats(NORMED, width);
  for (int64_t row = 0; row < num_rows; row++) {
    norm(inputs + row * width, weights, normed, width, epsilon, adds_one);
    for (int64_t at = 0; at < width; at += 16)
      store_narrow(outputs + row * width + at, _mm512_loadu_ps(normed + at));
  }
}
