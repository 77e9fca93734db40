// What a low-rank adapter adds to a linear layer while it is trained, forward and backward, beside the product with the frozen
// weights: rows go through few numbers, which a register holds.
//
// Rows and matrices are bfloat16, sums float32. The rank is padded with zeros to a multiple of 16.

#include "native.h"

#include <algorithm>

namespace {

using namespace lushan;

constexpr int64_t ROWS = 8, COLUMNS = 32, RANKS = 8;  // that are summed at once
constexpr int64_t FEW_ROWS = 16;                      // for which a second thread is not worth its start
enum Place { FIRST = 24, SECOND, BACK, NARROW, NARROW_GRADIENT };  // of `scratch`

int64_t padded(int64_t rank) { return (rank + 15) / 16 * 16; }

uint32_t pair_of(uint16_t low, uint16_t high) { return (uint32_t)low | (uint32_t)high << 16; }

// A matrix, [rank][columns] or [columns][rank]. Inside of a parallel region: threads share the work, and wait for each other.
struct Factor {
  const uint16_t *numbers;
  int64_t rank, columns;
  bool has_rank_first;

  // [columns / 2][rank][2], to go from columns to ranks.
  void pair_columns(uint32_t *into) const {
    const int64_t ranks = padded(rank), to_next = has_rank_first ? 1 : rank;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < columns; first += COLUMNS)
      for (int64_t number = 0; number < ranks; number++) {
        const uint16_t *from = numbers + (has_rank_first ? number * columns + first : first * rank + number);
        uint32_t *place = into + first / 2 * ranks + number;
        for (int64_t pair = 0; pair < COLUMNS / 2; pair++, from += 2 * to_next)
          place[pair * ranks] = number < rank ? pair_of(from[0], from[to_next]) : 0;
      }
  }

  // [columns / 16][rank / 2][16][2], to go from ranks to columns.
  void pair_ranks(uint32_t *into) const {
    const int64_t pairs = padded(rank) / 2, to_next = has_rank_first ? columns : 1, step = has_rank_first ? 1 : rank;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < columns / 16; block++)
      for (int64_t pair = 0; pair < pairs; pair++) {
        const uint16_t *from = numbers + 2 * pair * to_next + 16 * block * step;
        const uint32_t mask = 2 * pair + 1 < rank ? 0xffffffff : 2 * pair < rank ? 0xffff : 0;
        const int64_t second = 2 * pair + 1 < rank ? to_next : 0;
        uint32_t *place = into + (block * pairs + pair) * 16;
        for (int64_t column = 0; column < 16; column++)
          place[column] = mask ? pair_of(from[column * step], from[column * step + second]) & mask : 0;
      }
  }
};

template <int COUNT>
void narrow_rows(const uint16_t *rows, int64_t width, const uint32_t *factor, int64_t ranks, float by, uint16_t *into) {
  for (int64_t rank = 0; rank < ranks; rank += 16) {
    __m512 sums[COUNT] = {};
    for (int64_t pair = 0; pair < width / 2; pair++) {
      const __m512i line = _mm512_loadu_si512(factor + pair * ranks + rank);
#pragma GCC unroll 8
      for (int row = 0; row < COUNT; row++) sums[row] = add_products(sums[row], pair_at(rows + row * width + 2 * pair), line);
    }
    for (int row = 0; row < COUNT; row++)
      store_narrow(into + row * ranks + rank, _mm512_mul_ps(sums[row], _mm512_set1_ps(by)));
  }
}

template <int COUNT>
void widen_rows(const uint16_t *narrow, int64_t ranks, const uint32_t *factor, int64_t width, float by, uint16_t *into) {
  const int64_t pairs = ranks / 2;
  for (int64_t column = 0; column < width; column += 32) {
    const uint32_t *block = factor + column * pairs;
    __m512 sums[COUNT][2] = {};
    for (int64_t pair = 0; pair < pairs; pair++) {
      const __m512i one = _mm512_loadu_si512(block + pair * 16), two = _mm512_loadu_si512(block + (pairs + pair) * 16);
#pragma GCC unroll 8
      for (int row = 0; row < COUNT; row++) {
        const __m512i numbers = pair_at(narrow + row * ranks + 2 * pair);
        sums[row][0] = add_products(sums[row][0], numbers, one);
        sums[row][1] = add_products(sums[row][1], numbers, two);
      }
    }
    for (int row = 0; row < COUNT; row++)
      for (int half = 0; half < 2; half++) {
        uint16_t *place = into + row * width + column + half * 16;
        store_narrow(place, _mm512_fmadd_ps(sums[row][half], _mm512_set1_ps(by), widen(place)));
      }
  }
}

// Numbers of two rows that follow each other, side by side; zeros behind the last row.
void pair_rows(const uint16_t *narrow, int64_t num_rows, int64_t ranks, uint32_t *into) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < num_rows; row += 2)
    for (int64_t rank = 0; rank < ranks; rank++)
      into[row / 2 * ranks + rank] =
          pair_of(narrow[row * ranks + rank], row + 1 < num_rows ? narrow[(row + 1) * ranks + rank] : 0);
}

// The gradient of a factor: over all rows, what is narrow times what is wide.
void factor_gradient(const Factor &factor, const uint32_t *narrow, const uint16_t *rows, int64_t num_rows, float by, uint16_t *into) {
  const int64_t ranks = padded(factor.rank), width = factor.columns;
  const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i high = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
#pragma omp for schedule(static)
  for (int64_t column = 0; column < width; column += COLUMNS)
    for (int64_t first = 0; first < factor.rank; first += RANKS) {
      __m512 sums[RANKS][2] = {};
      for (int64_t row = 0; row < num_rows; row += 2) {
        const __m512i one = _mm512_loadu_si512(rows + row * width + column);
        const __m512i two = row + 1 < num_rows ? _mm512_loadu_si512(rows + (row + 1) * width + column) : _mm512_setzero_si512();
        const __m512i lower = _mm512_unpacklo_epi16(one, two), upper = _mm512_unpackhi_epi16(one, two);
#pragma GCC unroll 8
        for (int rank = 0; rank < RANKS; rank++) {
          const __m512i numbers = pair_at(narrow + row / 2 * ranks + first + rank);
          sums[rank][0] = add_products(sums[rank][0], numbers, lower);
          sums[rank][1] = add_products(sums[rank][1], numbers, upper);
        }
      }
      for (int64_t rank = first; rank < std::min(first + RANKS, factor.rank); rank++) {
        const __m512 scale = _mm512_set1_ps(by), *sum = sums[rank - first];
        alignas(64) uint16_t made[COLUMNS];
        store_narrow(made, _mm512_mul_ps(_mm512_permutex2var_ps(sum[0], low, sum[1]), scale));
        store_narrow(made + 16, _mm512_mul_ps(_mm512_permutex2var_ps(sum[0], high, sum[1]), scale));
        for (int64_t at = 0; at < COLUMNS; at++)
          into[factor.has_rank_first ? rank * width + column + at : (column + at) * factor.rank + rank] = made[at];
      }
    }
}

// Calls `function` with every tile of rows, its first row and how many it has.
template <typename Function> void for_tiles(int64_t num_rows, Function function) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < num_rows; row += ROWS) function(row, std::min(ROWS, num_rows - row));
}

void narrow_tile(const uint16_t *rows, int64_t count, int64_t width, const uint32_t *factor, int64_t ranks, float by, uint16_t *into) {
  if (count == ROWS) return narrow_rows<ROWS>(rows, width, factor, ranks, by, into);
  for (int64_t row = 0; row < count; row++) narrow_rows<1>(rows + row * width, width, factor, ranks, by, into + row * ranks);
}

void widen_tile(const uint16_t *narrow, int64_t count, int64_t ranks, const uint32_t *factor, int64_t width, float by,
                uint16_t *into) {
  if (count == ROWS) return widen_rows<ROWS>(narrow, ranks, factor, width, by, into);
  for (int64_t row = 0; row < count; row++)
    widen_rows<1>(narrow + row * ranks, ranks, factor, width, by, into + row * width);
}

int threads_for(const LowRankJob &job, int num_threads) { return job.num_rows > FEW_ROWS ? num_threads : 1; }

uint32_t *pairs(int place, int64_t count) { return (uint32_t *)scratch(place, count * sizeof(uint32_t)); }

}  // namespace

// Adds to `outputs`, and writes `narrow`.
extern "C" void lushan_adapt(const LowRankJob *given, int num_threads) {
  const LowRankJob &job = *given;
  const int64_t ranks = padded(job.rank);
  const Factor down{job.down, job.rank, job.num_inputs, true}, up{job.up, job.rank, job.num_outputs, false};
  uint32_t *first = pairs(FIRST, job.num_inputs / 2 * ranks), *second = pairs(SECOND, job.num_outputs / 2 * ranks);
#pragma omp parallel num_threads(threads_for(job, num_threads))
  {
    down.pair_columns(first);
    up.pair_ranks(second);
    for_tiles(job.num_rows, [&](int64_t row, int64_t count) {
      uint16_t *narrow = job.narrow + row * ranks;
      narrow_tile(job.rows + row * job.num_inputs, count, job.num_inputs, first, ranks, 1.0f, narrow);
      uint16_t *outputs = job.outputs + row * job.num_outputs;
      widen_tile(narrow, count, ranks, second, job.num_outputs, (float)job.scaling, outputs);
    });
  }
}

// Writes the gradients of both matrices, and adds to that of the rows.
extern "C" void lushan_adapt_backward(const LowRankJob *given, int num_threads) {
  const LowRankJob &job = *given;
  const int64_t ranks = padded(job.rank), num_pairs = (job.num_rows + 1) / 2;
  const Factor down{job.down, job.rank, job.num_inputs, true}, up{job.up, job.rank, job.num_outputs, false};
  const float scaling = (float)job.scaling;
  uint32_t *first = pairs(FIRST, job.num_outputs / 2 * ranks), *second = pairs(SECOND, job.num_inputs / 2 * ranks);
  uint16_t *back = (uint16_t *)scratch(BACK, job.num_rows * ranks * sizeof(uint16_t));
  uint32_t *narrow = pairs(NARROW, num_pairs * ranks), *narrow_gradient = pairs(NARROW_GRADIENT, num_pairs * ranks);
#pragma omp parallel num_threads(threads_for(job, num_threads))
  {
    up.pair_columns(first);
    if (job.row_gradients) down.pair_ranks(second);
    for_tiles(job.num_rows, [&](int64_t row, int64_t count) {
      const uint16_t *gradients = job.gradients + row * job.num_outputs;
      narrow_tile(gradients, count, job.num_outputs, first, ranks, scaling, back + row * ranks);
      if (!job.row_gradients) return;
      uint16_t *into = job.row_gradients + row * job.num_inputs;
      widen_tile(back + row * ranks, count, ranks, second, job.num_inputs, 1.0f, into);
    });
    pair_rows(back, job.num_rows, ranks, narrow_gradient);
    pair_rows(job.narrow, job.num_rows, ranks, narrow);
    factor_gradient(down, narrow_gradient, job.rows, job.num_rows, 1.0f, job.down_gradients);
    factor_gradient(up, narrow, job.gradients, job.num_rows, scaling, job.up_gradients);
  }
}
