// What the parts of the library share. Structures that Python fills stand in `native_structures.py`, field by field.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <initializer_list>

namespace lushan {

inline __m512 widen(__m256i numbers) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

inline __m512 widen(const uint16_t *from) { return widen(_mm256_loadu_si256((const __m256i *)from)); }

inline __m256i narrow(__m512 numbers) { return (__m256i)_mm512_cvtneps_pbh(numbers); }

inline __m512 rounded(__m512 numbers) { return widen(narrow(numbers)); }

// Which of the 16 numbers from `at` on are in [first, end).
inline __mmask16 there(int64_t first, int64_t end, int64_t at) {
  __mmask16 not_before = first <= at ? 0xffff : first - at >= 16 ? 0 : (__mmask16)(0xffff << (first - at));
  __mmask16 not_behind = end - at >= 16 ? 0xffff : end <= at ? 0 : (__mmask16)((1u << (end - at)) - 1);
  return (__mmask16)(not_before & not_behind);
}

inline void store_narrow(uint16_t *into, __m512 numbers) { _mm256_storeu_si256((__m256i *)into, narrow(numbers)); }

// Sums of the products of pairs of bfloat16 that stand side by side.
inline __m512 add_products(__m512 sums, __m512i one, __m512i two) { return _mm512_dpbf16_ps(sums, (__m512bh)one, (__m512bh)two); }

inline __m512i pair_at(const void *from) { return _mm512_set1_epi32(*(const int32_t *)from); }

// 2 to the whole part, times a polynomial of the rest: right to 2e-7, which float32 rounds to anyway. Of -inf it is 0, although
// the rest is no number then: so `vscalefps` is defined.
inline __m512 exponential(__m512 of) {
  __m512 power = _mm512_mul_ps(of, _mm512_set1_ps(1.44269504f));
  __m512 whole = _mm512_roundscale_ps(power, 0);
  __m512 rest = _mm512_mul_ps(_mm512_sub_ps(power, whole), _mm512_set1_ps(0.69314718f));
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, whole);
}

// x times how far it is open, and the slope of that: silu, or gelu by tanh, which is x times the sigmoid of twice what tanh is
// taken of.
struct Gate {
  __m512 value, slope;

  Gate(__m512 gate, bool is_gelu) {
    const __m512 one = _mm512_set1_ps(1.0f), most = _mm512_set1_ps(100.0f);  // beyond it is open, or closed, to the last bit
    const __m512 inside = _mm512_set1_ps(is_gelu ? 1.5957691f : 1.0f), cubed = _mm512_set1_ps(is_gelu ? 0.044715f : 0.0f);
    __m512 bounded = _mm512_max_ps(_mm512_min_ps(gate, most), _mm512_sub_ps(_mm512_setzero_ps(), most));
    __m512 square = _mm512_mul_ps(_mm512_mul_ps(bounded, bounded), cubed);
    __m512 power = _mm512_mul_ps(bounded, _mm512_mul_ps(inside, _mm512_add_ps(square, one)));
    __m512 open = _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), power))));
    value = _mm512_mul_ps(gate, open);
    __m512 rest = _mm512_mul_ps(_mm512_sub_ps(one, open), _mm512_mul_ps(inside, _mm512_fmadd_ps(square, _mm512_set1_ps(3.0f), one)));
    slope = _mm512_mul_ps(open, _mm512_fmadd_ps(bounded, rest, one));
  }
};

enum Form : int64_t { BF16 = 0, INT8 = 1, INT4 = 2 };

// A packed matrix.
struct Matrix {
  const uint8_t *weights;  // [outputs / 16][inputs / 2][16][2]
  const uint16_t *scales;  // bfloat16, [outputs / 16][inputs / 32][16]; none in bfloat16
  const float *bias;       // or none
  int64_t num_inputs, num_outputs;
  Form form;
  int64_t stored_inputs;  // of an output, from one block to the next: all, or more where a part is multiplied
};

// A decoder layer.
struct Layer {
  Matrix query, key, value, output, gate, up, down;
  const uint16_t *norm_before_attention, *norm_before_network;
  const uint16_t *norm_after_attention, *norm_after_network;  // or none
  const uint16_t *query_norm, *key_norm;                      // of each head; or none
  int64_t width, num_heads, num_key_heads, head_width, inner_width;
  int64_t adds_one, is_gelu;
  double epsilon;
};

// What an adapter adds to a linear layer: first to a few numbers, then from them; bfloat16.
struct LowRank {
  const uint16_t *down, *up;  // [rank][inputs], [rank][outputs]
  int64_t rank;               // 0 where it adds nothing
};

enum Linear { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, NUM_LINEARS };

// The adapters of a pass.
struct Adapted {
  const int32_t *owners;   // of every row; -1 for the base alone
  const LowRank *matrices;  // [adapters][NUM_LINEARS]
};

// A layer of a step, with what it remembers of the texts, and how it looks at it.
struct StepLayer {
  const Layer *layer;
  const Adapted *adapted;  // or none
  uint16_t *key_table, *value_table;
  int64_t window;
  double scaling;
};

// Rows as products take them: bfloat16; or, for 8 and 4 bits, 16 bits with a scale for each 32 inputs.
struct Inputs {
  int16_t *numbers;
  float *scales;
  int64_t num_rows;
};

// Memory that a thread of the caller keeps for the next call; `place` tells apart what is needed at once.
void *scratch(int place, int64_t num_bytes);

Inputs prepare(const float *rows, int64_t num_rows, int64_t width, Form form, int place);

void multiply(const Matrix &matrix, const Inputs &inputs, void *outputs, bool writes_float32, int num_threads);

// Addresses, then sizes and distances in numbers.
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

void attend(const SlotJob &job, int num_threads);

// Documents behind each other, none of which sees another; all continue the same.
struct DocumentJob {
  const uint16_t *queries, *keys, *values;  // [tokens][heads][width], of the first document on
  uint16_t *outputs;                        // like the queries
  const uint16_t *prefix_keys, *prefix_values;
  const int64_t *lengths;
  int64_t num_documents, num_heads, num_key_heads, width;
  int64_t num_prefix, prefix_head, prefix_token;  // tokens; how far heads and tokens are apart
  int64_t causal, window;                         // tokens that a query sees on each side, itself included; 0 for all
  double scaling;
};

// Documents that are trained on, none of which sees another; rows are [tokens][heads][width], in bfloat16.
struct TrainedDocuments {
  const uint16_t *queries, *keys, *values;
  uint16_t *outputs;                // written forward
  const uint16_t *gradients;        // of the outputs; read backward
  uint16_t *query_gradients, *key_gradients, *value_gradients;  // written backward
  const int64_t *lengths;
  int64_t num_documents, num_heads, num_key_heads, width;
  int64_t causal, window;  // tokens that a query sees on each side, itself included; 0 for all
  double scaling;
};

// A linear layer with a low-rank adapter that is trained; rows and matrices are bfloat16, behind each other.
struct LowRankJob {
  const uint16_t *rows;       // [rows][inputs], which enter the adapter
  const uint16_t *down, *up;  // [rank][inputs], [outputs][rank]
  uint16_t *narrow;           // [rows][rank, padded to a multiple of 16], written forward and read backward
  uint16_t *outputs;          // [rows][outputs], added to forward
  const uint16_t *gradients;  // of the outputs
  uint16_t *row_gradients;    // like the rows, added to backward; or none
  uint16_t *down_gradients, *up_gradients;  // like the matrices
  int64_t num_rows, num_inputs, num_outputs, rank;
  double scaling;
};

// A weight on its way.
struct Moved {
  const void *gradient;  // bfloat16 or float32
  void *master;          // float32; or, beside `shown`, 16 bits: the bits of the float32 less those that are shown
  float *first_moment, *second_moment;
  uint16_t *shown;  // the weight in bfloat16; or none
  int64_t count, is_half;  // whether the gradient is bfloat16
  double rate, decay;
};

}  // namespace lushan
