// What attention inside of documents shares that are trained on, whatever their length.

#pragma once

#include "native.h"

#include <algorithm>
#include <cmath>

namespace lushan {

// Documents of one head of keys. A row is a query: those of all heads that share the keys, token by token.
struct Head {
  const TrainedDocuments &job;
  int64_t number, start, length;

  int64_t shared() const { return job.num_heads / job.num_key_heads; }
  int64_t rows() const { return length * shared(); }
  int64_t padded() const { return (length + 15) / 16 * 16; }
  int64_t query(int64_t row) const {
    return ((start + row / shared()) * job.num_heads + number * shared() + row % shared()) * job.width;
  }
  int64_t key(int64_t token) const { return ((start + token) * job.num_key_heads + number) * job.width; }
  int64_t first(int64_t row) const { return job.window ? std::max<int64_t>(0, row / shared() + 1 - job.window) : 0; }
  int64_t end(int64_t row) const {
    if (job.causal) return row / shared() + 1;
    return job.window ? std::min(length, row / shared() + job.window) : length;
  }
};

// Keys that some of the rows see, to multiples of 16.
struct Seen {
  int64_t from, end;

  Seen(const Head &head, int64_t row, int64_t count)
      : from(head.first(row) / 16 * 16), end((head.end(row + count - 1) + 15) / 16 * 16) {}
};

// Scores of one row become weights that add up to 1, and 0 where it does not look.
inline void weigh(const Head &head, int64_t row, float *scores, const Seen &seen) {
  const int64_t first = head.first(row), end = head.end(row);
  const __m512 scaling = _mm512_set1_ps((float)head.job.scaling);
  __m512 largest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
  for (int64_t at = seen.from; at < seen.end; at += 16)
    largest = _mm512_mask_max_ps(largest, there(first, end, at), largest, _mm512_loadu_ps(scores + at));
  largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest) * (float)head.job.scaling);
  for (int64_t at = seen.from; at < seen.end; at += 16) {
    __m512 weight = exponential(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), scaling, largest));
    weight = _mm512_maskz_mov_ps(there(first, end, at), weight);
    total = _mm512_add_ps(total, weight);
    _mm512_storeu_ps(scores + at, weight);
  }
  const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int64_t at = seen.from; at < seen.end; at += 16)
    _mm512_storeu_ps(scores + at, _mm512_mul_ps(_mm512_loadu_ps(scores + at), share));
}

// Weights of a row, and what its outputs' gradient says of them, become the gradient of its scores.
inline void weigh_back(const Head &head, const float *weights, float *back, const Seen &seen) {
  __m512 total = _mm512_setzero_ps();
  for (int64_t at = seen.from; at < seen.end; at += 16)
    total = _mm512_fmadd_ps(_mm512_loadu_ps(weights + at), _mm512_loadu_ps(back + at), total);
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total)), scaling = _mm512_set1_ps((float)head.job.scaling);
  for (int64_t at = seen.from; at < seen.end; at += 16) {
    __m512 difference = _mm512_sub_ps(_mm512_loadu_ps(back + at), mean);
    _mm512_storeu_ps(back + at, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(weights + at), scaling), difference));
  }
}

inline void write(const float *from, uint16_t *into, int64_t width) {
  for (int64_t at = 0; at < width; at += 16) store_narrow(into + at, _mm512_loadu_ps(from + at));
}

// Documents whose scores and weights are products of bfloat16, by blocks of queries: for longer ones.
void attend_in_blocks(const Head &head);
void attend_in_blocks_backward(const Head &head);

}  // namespace lushan
