// Products of bfloat16 rows with weights in bfloat16, 8 or 4 bits; sums are float32.
//
// Weights stand in blocks of 16 outputs; in a block, pairs of inputs follow each other, as `vdpbf16ps` takes them:
// [outputs / 16][inputs / 2][16][2]. Of 8 and 4 bits, 32 inputs of an output have a scale together.
//
// Few rows: weights are widened in registers, so that what is read from memory is as small as they are. Whole numbers of
// 8 and of 4 bits are exact in bfloat16, and the scale is multiplied to the sum of its inputs.
// Many rows: weights of three blocks are widened once, into the cache, with their scales, and used for all rows.

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>

namespace {

enum Form { BF16 = 0, INT8 = 1, INT4 = 2 };

constexpr int FEW_ROWS = 8;  // as many as have a sum in a register for each of three blocks
constexpr int BLOCKS_AT_ONCE = 3;
constexpr int GROUP_PAIRS = 16;  // of inputs that have a scale together

struct Job {
  const uint16_t *inputs;
  const uint8_t *weights;
  const uint16_t *scales;
  const float *bias;
  void *outputs;
  int64_t num_rows, num_inputs, num_outputs;
  bool writes_float32;

  int64_t pairs() const { return num_inputs / 2; }
  int64_t groups() const { return num_inputs / 2 / GROUP_PAIRS; }
};

// The numbers -8 to 7.
const uint16_t NUMBERS_OF_4_BITS[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

inline __m512 widen(__m256i numbers) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline __m512i pairs_of_8_bits(const int8_t *from) {
  __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
  __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + 16))));
  return narrow(low, high);
}

// Two pairs of each output, one behind the other.
inline void two_of_8_bits(const uint8_t *from, __m512i &first, __m512i &second) {
  first = pairs_of_8_bits((const int8_t *)from);
  second = pairs_of_8_bits((const int8_t *)from + 32);
}

// The same: the first in the lower halves of the bytes, the second in the upper ones.
inline void two_of_4_bits(const uint8_t *from, __m512i &first, __m512i &second) {
  const __m512i table = _mm512_loadu_si512(NUMBERS_OF_4_BITS);
  __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
  first = _mm512_permutexvar_epi16(_mm512_and_si512(both, _mm512_set1_epi16(15)), table);
  second = _mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
}

template <int FORM> inline void two_pairs(const uint8_t *from, __m512i &first, __m512i &second) {
  if constexpr (FORM == INT8)
    two_of_8_bits(from, first, second);
  else
    two_of_4_bits(from, first, second);
}

// Of one pair of the 16 outputs of a block.
constexpr int64_t pair_bytes(int form) { return form == BF16 ? 64 : form == INT8 ? 32 : 16; }

inline __m512 add_product(__m512 sum, __m512i weights, __m512i inputs) {
  return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)inputs);
}

inline void store(const Job &job, int64_t row, int64_t column, __m512 sum) {
  int64_t left = job.num_outputs - column;
  __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
  if (job.bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, job.bias + column));
  int64_t place = row * job.num_outputs + column;
  if (job.writes_float32)
    _mm512_mask_storeu_ps((float *)job.outputs + place, mask, sum);
  else
    _mm256_mask_storeu_epi16((uint16_t *)job.outputs + place, mask, (__m256i)_mm512_cvtneps_pbh(sum));
}

template <int ROWS, int BLOCKS> struct Sums {
  __m512 of[ROWS][BLOCKS];

  inline void clear() {
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++) of[row][block] = _mm512_setzero_ps();
  }

  inline void add(const __m512i *weights, const int32_t *inputs, int64_t pairs) {
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      __m512i pair = _mm512_set1_epi32(inputs[row * pairs]);
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++) of[row][block] = add_product(of[row][block], weights[block], pair);
    }
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
void multiply_bf16(const Job &job, const uint16_t *weights, int64_t row, int64_t column) {
  const int64_t pairs = job.pairs();
  const int32_t *inputs = (const int32_t *)(job.inputs + row * job.num_inputs);
  Sums<ROWS, BLOCKS> sums;
  sums.clear();
  for (int64_t pair = 0; pair < pairs; pair++) {
    __m512i numbers[BLOCKS];
#pragma GCC unroll 3
    for (int block = 0; block < BLOCKS; block++)
      numbers[block] = _mm512_loadu_si512(weights + (block * pairs + pair) * 32);
    sums.add(numbers, inputs + pair, pairs);
  }
  sums.write(job, row, column);
}

template <int FORM, int ROWS, int BLOCKS>
void multiply_rounded(const Job &job, const uint8_t *weights, const uint16_t *scales, int64_t column) {
  const int64_t pairs = job.pairs(), groups = job.groups();
  const int32_t *inputs = (const int32_t *)job.inputs;
  Sums<ROWS, BLOCKS> sums, part;
  sums.clear();
  for (int64_t group = 0; group < groups; group++) {
    part.clear();
    for (int64_t pair = group * GROUP_PAIRS; pair < (group + 1) * GROUP_PAIRS; pair += 2) {
      __m512i first[BLOCKS], second[BLOCKS];
#pragma GCC unroll 3
      for (int block = 0; block < BLOCKS; block++)
        two_pairs<FORM>(weights + (block * pairs + pair) * pair_bytes(FORM), first[block], second[block]);
      part.add(first, inputs + pair, pairs);
      part.add(second, inputs + pair + 1, pairs);
    }
#pragma GCC unroll 3
    for (int block = 0; block < BLOCKS; block++) {
      __m512 scale = widen(_mm256_loadu_si256((const __m256i *)(scales + (block * groups + group) * 16)));
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; row++)
        sums.of[row][block] = _mm512_fmadd_ps(part.of[row][block], scale, sums.of[row][block]);
    }
  }
  sums.write(job, 0, column);
}

// Call the code that is made for this number of rows.
template <int FORM, int BLOCKS, int ROWS = FEW_ROWS>
void multiply_few(const Job &job, int64_t num_rows, const uint8_t *weights, const uint16_t *scales, int64_t row,
                  int64_t column) {
  if constexpr (ROWS > 1) {
    if (num_rows < ROWS) return multiply_few<FORM, BLOCKS, ROWS - 1>(job, num_rows, weights, scales, row, column);
  }
  if constexpr (FORM == BF16)
    multiply_bf16<ROWS, BLOCKS>(job, (const uint16_t *)weights, row, column);
  else
    multiply_rounded<FORM, ROWS, BLOCKS>(job, weights, scales, column);
}

inline __m512i scaled(__m512i pairs, __m512 low_scale, __m512 high_scale) {
  __m512 low = widen(_mm512_castsi512_si256(pairs)), high = widen(_mm512_extracti64x4_epi64(pairs, 1));
  return narrow(_mm512_mul_ps(low, low_scale), _mm512_mul_ps(high, high_scale));
}

// Here scales have to be multiplied to the weights, which rounds them once more.
template <int FORM> void widen_rounded(const Job &job, const uint8_t *from, const uint16_t *scales, uint16_t *into) {
  const __m512i low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int64_t group = 0; group < job.groups(); group++) {
    __m512 scale = widen(_mm256_loadu_si256((const __m256i *)(scales + group * 16)));
    __m512 low_scale = _mm512_permutexvar_ps(low, scale), high_scale = _mm512_permutexvar_ps(high, scale);
    for (int64_t pair = group * GROUP_PAIRS; pair < (group + 1) * GROUP_PAIRS; pair += 2) {
      __m512i first, second;
      two_pairs<FORM>(from + pair * pair_bytes(FORM), first, second);
      _mm512_storeu_si512(into + pair * 32, scaled(first, low_scale, high_scale));
      _mm512_storeu_si512(into + (pair + 1) * 32, scaled(second, low_scale, high_scale));
    }
  }
}

template <int FORM, int BLOCKS> void multiply_blocks(const Job &job, int64_t block, uint16_t *scratch) {
  const int64_t pairs = job.pairs(), column = block * 16;
  const int64_t block_bytes = pairs * pair_bytes(FORM);
  const uint8_t *weights = job.weights + block * block_bytes;
  const uint16_t *scales = job.scales + block * job.groups() * 16;
  if (FORM != BF16 && BLOCKS > 1 && job.num_rows > FEW_ROWS / 2 && job.num_rows <= FEW_ROWS) {
    for (int each = 0; each < BLOCKS; each++)  // two sums each would not all have a register
      multiply_blocks<FORM, 1>(job, block + each, scratch);
    return;
  }
  if (FORM != BF16 && job.num_rows <= FEW_ROWS)
    return multiply_few<FORM, BLOCKS>(job, job.num_rows, weights, scales, 0, column);
  if constexpr (FORM != BF16) {
    for (int each = 0; each < BLOCKS; each++)
      widen_rounded<FORM>(job, weights + each * block_bytes, scales + each * job.groups() * 16,
                          scratch + each * pairs * 32);
    weights = (const uint8_t *)scratch;
  }
  for (int64_t row = 0; row < job.num_rows; row += FEW_ROWS)
    multiply_few<BF16, BLOCKS>(job, job.num_rows - row, weights, nullptr, row, column);
}

template <int FORM> void multiply_all(const Job &job, int num_threads) {
  const int64_t blocks = (job.num_outputs + 15) / 16;
  const int64_t parts = (blocks + BLOCKS_AT_ONCE - 1) / BLOCKS_AT_ONCE;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    bool widens = FORM != BF16 && job.num_rows > FEW_ROWS;
    uint16_t *scratch = widens ? (uint16_t *)std::aligned_alloc(64, job.pairs() * 64 * BLOCKS_AT_ONCE) : nullptr;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
      int64_t block = part * BLOCKS_AT_ONCE;
      if (blocks - block >= BLOCKS_AT_ONCE)
        multiply_blocks<FORM, BLOCKS_AT_ONCE>(job, block, scratch);
      else
        for (; block < blocks; block++) multiply_blocks<FORM, 1>(job, block, scratch);
    }
    std::free(scratch);
  }
}

}  // namespace

// `scales` are bfloat16, [outputs / 16][inputs / 32][16].
extern "C" void lushan_multiply(const void *inputs, const void *weights, const void *scales, const void *bias,
                                void *outputs, int64_t num_rows, int64_t num_inputs, int64_t num_outputs, int form,
                                int writes_float32, int num_threads) {
  Job job{(const uint16_t *)inputs,
          (const uint8_t *)weights,
          (const uint16_t *)scales,
          (const float *)bias,
          outputs,
          num_rows,
          num_inputs,
          num_outputs,
          writes_float32 != 0};
  if (form == BF16)
    multiply_all<BF16>(job, num_threads);
  else if (form == INT8)
    multiply_all<INT8>(job, num_threads);
  else
    multiply_all<INT4>(job, num_threads);
}
