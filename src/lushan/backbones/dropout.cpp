// Dropout while a model is trained. What is dropped follows from a seed and the place of a number alone: the way back draws it
// again instead of keeping it, and threads share the work.
//
// Random numbers are those of Philox 4x32 in seven rounds, the fewest that pass all known tests: Salmon et al. 2011, "Parallel
// Random Numbers: As Easy as 1, 2, 3". 16 bits of them decide on a number.

#include "native.h"

#include <algorithm>

namespace {

using namespace lushan;

constexpr int64_t FEW_NUMBERS = 8192;     // for which a second thread is not worth its start
constexpr int64_t BLOCK = 128, WIDE = 32;  // numbers that 16 counters decide on; that one of their words does
constexpr int ROUNDS = 7;

struct Product {
  __m512i high, low;

  Product(__m512i numbers, uint32_t by) {
    const __m512i factor = _mm512_set1_epi32((int)by);
    const __m512i even = _mm512_mul_epu32(numbers, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(numbers, 32), factor);
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
    low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
  }
};

// The words of the counters `first` to `first` + 15.
void philox(uint64_t seed, int64_t first, __m512i (&words)[4]) {
  uint32_t key = (uint32_t)seed, other_key = (uint32_t)(seed >> 32);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  words[0] = _mm512_add_epi32(_mm512_set1_epi32((int)(uint32_t)first), lanes);
  words[1] = _mm512_set1_epi32((int)(uint32_t)((uint64_t)first >> 32));
  words[2] = words[3] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int round = 0; round < ROUNDS; round++) {
    const Product one(words[0], 0xd2511f53), two(words[2], 0xcd9e8d57);
    words[0] = _mm512_xor_si512(_mm512_xor_si512(two.high, words[1]), _mm512_set1_epi32((int)key));
    words[2] = _mm512_xor_si512(_mm512_xor_si512(one.high, words[3]), _mm512_set1_epi32((int)other_key));
    words[1] = two.low;
    words[3] = one.low;
    key += 0x9e3779b9;
    other_key += 0xbb67ae85;
  }
}

__m512i half_of(__m512i numbers, __m512 scale, __m512i added, int half) {
  const __m256i part = half ? _mm512_extracti64x4_epi64(numbers, 1) : _mm512_castsi512_si256(numbers);
  const __m256i beside = half ? _mm512_extracti64x4_epi64(added, 1) : _mm512_castsi512_si256(added);
  return _mm512_castsi256_si512(narrow(_mm512_fmadd_ps(widen(part), scale, widen(beside))));
}

}  // namespace

// `outputs` are the numbers, scaled, or 0 where one of `threshold` in 65,536 is dropped; plus `added`, or none. It may be either.
extern "C" void lushan_drop(const uint16_t *numbers, const uint16_t *added, uint16_t *outputs, int64_t count, uint64_t seed,
                            int64_t threshold, int num_threads) {
  const __m512i least = _mm512_set1_epi16((short)(uint16_t)threshold);
  const __m512 scale = _mm512_set1_ps(65536.0f / (float)(65536 - threshold));
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && count > FEW_NUMBERS) schedule(static)
  for (int64_t first = 0; first < count; first += BLOCK) {
    __m512i words[4];
    philox(seed, first / BLOCK * 16, words);
    for (int word = 0; word < 4; word++) {
      const int64_t at = first + word * WIDE, left = std::min(count - at, WIDE);
      if (left <= 0) break;
      const __mmask32 there = left == WIDE ? 0xffffffff : (1u << left) - 1;
      const __mmask32 stays = _mm512_cmpge_epu16_mask(words[word], least);
      const __m512i left_over = _mm512_maskz_loadu_epi16(stays & there, numbers + at);
      const __m512i beside = added ? _mm512_maskz_loadu_epi16(there, added + at) : _mm512_setzero_si512();
      const __m512i low = half_of(left_over, scale, beside, 0), high = half_of(left_over, scale, beside, 1);
      _mm512_mask_storeu_epi16(outputs + at, there, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
    }
  }
}
