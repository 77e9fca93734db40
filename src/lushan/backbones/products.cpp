// Products of rows with weights in bfloat16, 8 or 4 bits.
//
// Weights stand in blocks of 16 outputs; in a block, pairs of inputs follow each other, as `vdpbf16ps` and `vpdpwssd` take
// them: [outputs / 16][inputs / 2][16][2]. With weights in bfloat16, inputs are bfloat16 and sums float32. Of weights in 8
// and 4 bits, 32 inputs of an output have a scale together; inputs are rounded to 16 bits with a scale for the same 32, finer
// than bfloat16, and their sums are whole numbers: nothing is lost but what was lost when the weights were rounded.

#include "native.h"

#include <cmath>
#include <cstdlib>

namespace lushan {
namespace {

// As many as have a sum in a register for each of the blocks; with 8 and 4 bits, two sums.
constexpr int rows_at_once(Form form) { return form == BF16 ? 8 : 4; }
constexpr int blocks_at_once(Form form) { return form == BF16 ? 3 : 2; }
constexpr int GROUP_PAIRS = 16;  // of inputs that have a scale together
constexpr int GROUP_INPUTS = 2 * GROUP_PAIRS;
constexpr float LARGEST = 32767;
constexpr int NUM_PLACES = 32;

struct Job {
  const Matrix &matrix;
  const Inputs &inputs;
  void *outputs;
  bool writes_float32;

  int64_t pairs() const { return matrix.num_inputs / 2; }
  int64_t groups() const { return matrix.num_inputs / GROUP_INPUTS; }
  int64_t stored_pairs() const { return matrix.stored_inputs / 2; }
};

// Of one pair of the 16 outputs of a block.
constexpr int64_t pair_bytes(Form form) { return form == BF16 ? 64 : form == INT8 ? 32 : 16; }

// What is multiplied next is fetched meanwhile, a few lines for each group of inputs: memory and products take turns else.
struct Ahead {
  const uint8_t *next;
  int64_t lines_each;

  inline void fetch() {
    for (int64_t line = 0; line < lines_each; line++, next += 64) _mm_prefetch((const char *)next, _MM_HINT_T1);
  }
};

inline void store(const Job &job, int64_t row, int64_t column, __m512 sum) {
  const int64_t num_outputs = job.matrix.num_outputs, left = num_outputs - column;
  __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
  if (job.matrix.bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, job.matrix.bias + column));
  int64_t place = row * num_outputs + column;
  if (job.writes_float32)
    _mm512_mask_storeu_ps((float *)job.outputs + place, mask, sum);
  else
    _mm256_mask_storeu_epi16((uint16_t *)job.outputs + place, mask, narrow(sum));
}

template <int ROWS, int BLOCKS> struct Floats {
  __m512 of[ROWS][BLOCKS];

  inline void clear() {
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++) of[row][block] = _mm512_setzero_ps();
  }

  inline void write(const Job &job, int64_t first_row, int64_t column) const {
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++) store(job, first_row + row, column + 16 * block, of[row][block]);
  }
};

// `weights` is where the first block begins.
template <int ROWS, int BLOCKS>
void multiply_bf16(const Job &job, const uint8_t *weights, Ahead &ahead, int64_t row, int64_t column) {
  const int64_t pairs = job.pairs(), stored = job.stored_pairs();
  const int32_t *inputs = (const int32_t *)job.inputs.numbers + row * pairs;
  Floats<ROWS, BLOCKS> sums;
  sums.clear();
  for (int64_t pair = 0; pair < pairs; pair++) {
    if (pair % GROUP_PAIRS == 0) ahead.fetch();
    __m512bh numbers[BLOCKS];
#pragma GCC unroll 3
    for (int block = 0; block < BLOCKS; block++)
      numbers[block] = (__m512bh)_mm512_loadu_si512(weights + (block * stored + pair) * pair_bytes(BF16));
#pragma GCC unroll 8
    for (int each = 0; each < ROWS; each++) {
      __m512bh input = (__m512bh)_mm512_set1_epi32(inputs[each * pairs + pair]);
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++)
        sums.of[each][block] = _mm512_dpbf16_ps(sums.of[each][block], numbers[block], input);
    }
  }
  sums.write(job, row, column);
}

template <int ROWS, int BLOCKS> struct Wholes {
  __m512i of[ROWS][BLOCKS];

  inline void clear() {
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++) of[row][block] = _mm512_setzero_si512();
  }

  inline void add(const __m512i *weights, const int32_t *inputs, int64_t pairs) {
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++) {
      __m512i pair = _mm512_set1_epi32(inputs[row * pairs]);
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++)
        of[row][block] = _mm512_dpwssd_epi32(of[row][block], weights[block], pair);
    }
  }
};

inline __m512i of_8_bits(const uint8_t *from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)from));
}

// Two pairs: the first in the lower halves of the bytes, the second in the upper ones, each 8 too large.
inline void of_4_bits(const uint8_t *from, __m512i &first, __m512i &second) {
  const __m512i eight = _mm512_set1_epi16(8);
  __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
  first = _mm512_sub_epi16(_mm512_and_si512(both, _mm512_set1_epi16(15)), eight);
  second = _mm512_sub_epi16(_mm512_srli_epi16(both, 4), eight);
}

template <Form FORM, int ROWS, int BLOCKS>
inline void add_group(Wholes<ROWS, BLOCKS> &wholes, const uint8_t *weights, const int32_t *inputs, int64_t pairs) {
  if constexpr (FORM == INT8) {
#pragma GCC unroll 4
    for (int64_t pair = 0; pair < GROUP_PAIRS; pair++) {
      __m512i numbers[BLOCKS];
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++)
        numbers[block] = of_8_bits(weights + (block * pairs + pair) * pair_bytes(INT8));
      wholes.add(numbers, inputs + pair, pairs);
    }
  } else {
    for (int64_t pair = 0; pair < GROUP_PAIRS; pair += 2) {
      __m512i first[BLOCKS], second[BLOCKS];
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++)
        of_4_bits(weights + (block * pairs + pair) * pair_bytes(INT4), first[block], second[block]);
      wholes.add(first, inputs + pair, pairs);
      wholes.add(second, inputs + pair + 1, pairs);
    }
  }
}

template <Form FORM, int ROWS, int BLOCKS>
void multiply_rounded(const Job &job, const uint8_t *weights, const uint16_t *scales, Ahead &ahead, int64_t row,
                      int64_t column) {
  const int64_t pairs = job.pairs(), groups = job.groups();
  const int32_t *inputs = (const int32_t *)job.inputs.numbers + row * pairs;
  const float *input_scales = job.inputs.scales + row * groups;
  Floats<ROWS, BLOCKS> sums;
  sums.clear();
  for (int64_t group = 0; group < groups; group++) {
    ahead.fetch();
    Wholes<ROWS, BLOCKS> wholes;
    wholes.clear();
    const int64_t pair = group * GROUP_PAIRS;
    add_group<FORM>(wholes, weights + pair * pair_bytes(FORM), inputs + pair, pairs);
#pragma GCC unroll 3
    for (int block = 0; block < BLOCKS; block++) {
      __m512 scale = widen(scales + (block * groups + group) * 16);
#pragma GCC unroll 4
      for (int each = 0; each < ROWS; each++) {
        __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(input_scales[each * groups + group]));
        sums.of[each][block] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(wholes.of[each][block]), both, sums.of[each][block]);
      }
    }
  }
  sums.write(job, row, column);
}

// Call the code that is made for this number of rows.
template <Form FORM, int BLOCKS, int ROWS = rows_at_once(FORM)>
void multiply_rows(const Job &job, const uint8_t *weights, const uint16_t *scales, Ahead &ahead, int64_t row,
                   int64_t column) {
  if constexpr (ROWS > 1) {
    if (job.inputs.num_rows - row < ROWS)
      return multiply_rows<FORM, BLOCKS, ROWS - 1>(job, weights, scales, ahead, row, column);
  }
  if constexpr (FORM == BF16)
    multiply_bf16<ROWS, BLOCKS>(job, weights, ahead, row, column);
  else
    multiply_rounded<FORM, ROWS, BLOCKS>(job, weights, scales, ahead, row, column);
}

template <Form FORM, int BLOCKS> void multiply_blocks(const Job &job, int64_t block) {
  const int64_t block_bytes = job.stored_pairs() * pair_bytes(FORM), rows = job.inputs.num_rows;
  const uint8_t *weights = job.matrix.weights + block * block_bytes;
  const uint16_t *scales = job.matrix.scales + block * job.groups() * 16;
  const int64_t lines = BLOCKS * block_bytes / 64, times = (rows + rows_at_once(FORM) - 1) / rows_at_once(FORM);
  Ahead ahead{weights + BLOCKS * block_bytes, (lines + times * job.groups() - 1) / (times * job.groups())};
  for (int64_t row = 0; row < rows; row += rows_at_once(FORM))
    multiply_rows<FORM, BLOCKS>(job, weights, scales, ahead, row, block * 16);
}

template <Form FORM> void multiply_all(const Job &job, int num_threads) {
  constexpr int TOGETHER = blocks_at_once(FORM);
  const int64_t blocks = (job.matrix.num_outputs + 15) / 16, parts = (blocks + TOGETHER - 1) / TOGETHER;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(static)
  for (int64_t part = 0; part < parts; part++) {
    int64_t block = part * TOGETHER;
    if (blocks - block >= TOGETHER)
      multiply_blocks<FORM, TOGETHER>(job, block);
    else
      for (; block < blocks; block++) multiply_blocks<FORM, 1>(job, block);
  }
}

void prepare_bf16(const float *rows, int64_t count, int16_t *into) {
  for (int64_t at = 0; at < count; at += 16) store_narrow((uint16_t *)into + at, _mm512_loadu_ps(rows + at));
}

void prepare_16_bits(const float *rows, int64_t count, int16_t *into, float *scales) {
  for (int64_t at = 0; at < count; at += GROUP_INPUTS) {
    __m512 low = _mm512_loadu_ps(rows + at), high = _mm512_loadu_ps(rows + at + 16);
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    // The larger of two numbers leaves one out that is none: its group must not become finite.
    if (_mm512_cmp_ps_mask(low, low, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(high, high, _CMP_UNORD_Q)) largest = NAN;
    __m512 factor = _mm512_set1_ps(largest > 0 ? LARGEST / largest : 0);
    scales[at / GROUP_INPUTS] = largest / LARGEST;
    __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor)), second = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
    _mm256_storeu_si256((__m256i *)(into + at), _mm512_cvtsepi32_epi16(first));
    _mm256_storeu_si256((__m256i *)(into + at + 16), _mm512_cvtsepi32_epi16(second));
  }
}

struct Kept {
  void *memory = nullptr;
  int64_t num_bytes = 0;
  ~Kept() { std::free(memory); }
};

}  // namespace

void *scratch(int place, int64_t num_bytes) {
  thread_local Kept kept[NUM_PLACES];
  Kept &own = kept[place];
  if (own.num_bytes < num_bytes) {
    std::free(own.memory);
    own.num_bytes = (num_bytes + 63) / 64 * 64;
    own.memory = std::aligned_alloc(64, own.num_bytes);
    if (!own.memory) std::abort();
  }
  return own.memory;
}

Inputs prepare(const float *rows, int64_t num_rows, int64_t width, Form form, int place) {
  const int64_t count = num_rows * width, scale_bytes = form == BF16 ? 0 : count / GROUP_INPUTS * 4;
  char *memory = (char *)scratch(place, count * 2 + scale_bytes);
  Inputs inputs{(int16_t *)memory, (float *)(memory + count * 2), num_rows};
  if (form == BF16)
    prepare_bf16(rows, count, inputs.numbers);
  else
    prepare_16_bits(rows, count, inputs.numbers, inputs.scales);
  return inputs;
}

void multiply(const Matrix &matrix, const Inputs &inputs, void *outputs, bool writes_float32, int num_threads) {
  Job job{matrix, inputs, outputs, writes_float32};
  if (matrix.form == BF16)
    multiply_all<BF16>(job, num_threads);
  else if (matrix.form == INT8)
    multiply_all<INT8>(job, num_threads);
  else
    multiply_all<INT4>(job, num_threads);
}

}  // namespace lushan

// `inputs` are bfloat16.
extern "C" void lushan_multiply(const lushan::Matrix *of, const float *bias, const uint16_t *inputs, int64_t num_rows,
                                void *outputs, int writes_float32, int num_threads) {
  using namespace lushan;
  constexpr int64_t ROWS_AT_ONCE = 256;
  Matrix matrix = *of;
  matrix.bias = bias;
  const int64_t width = matrix.num_inputs;
  for (int64_t row = 0; row < num_rows; row += ROWS_AT_ONCE) {
    int64_t rows = num_rows - row < ROWS_AT_ONCE ? num_rows - row : ROWS_AT_ONCE;
    void *into = writes_float32 ? (void *)((float *)outputs + row * matrix.num_outputs)
                                : (void *)((uint16_t *)outputs + row * matrix.num_outputs);
    Inputs prepared{(int16_t *)inputs + row * width, nullptr, rows};
    if (matrix.form != BF16) {
      float *widened = (float *)scratch(0, rows * width * sizeof(float));
      for (int64_t at = 0; at < rows * width; at += 16)
        _mm512_storeu_ps(widened + at, widen(inputs + row * width + at));
      prepared = prepare(widened, rows, width, matrix.form, 1);
    }
    multiply(matrix, prepared, into, writes_float32, num_threads);
  }
}
