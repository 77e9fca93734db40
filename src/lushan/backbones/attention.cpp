// Attention inside of documents that are read in one pass, and of what they continue.
//
// Keys and values of a head are laid out as the weights of products are, and the queries of all heads that share them are
// multiplied together. Scores and sums are float32; weights of the average are rounded to bfloat16 before it, not divided.

#include "native.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

using namespace lushan;

constexpr int64_t PADDED_KEYS = 32;  // a product takes so many inputs at least
constexpr int64_t MOST_QUERIES = 64, MOST_SCORES = 1 << 17;
enum Place { KEYS = 10, VALUES, QUERIES, SCORES, AVERAGES };  // of `scratch`

// Documents of one head of keys.
struct Head {
  const DocumentJob &job;
  int64_t number, start, length, num_keys;
  uint16_t *keys, *values;  // packed

  int64_t padded() const { return (num_keys + PADDED_KEYS - 1) / PADDED_KEYS * PADDED_KEYS; }
  int64_t shared() const { return job.num_heads / job.num_key_heads; }

  const uint16_t *row(const uint16_t *prefix, const uint16_t *own, int64_t key) const {
    if (key < job.num_prefix) return prefix + number * job.prefix_head + key * job.prefix_token;
    int64_t token = start + std::min(key, num_keys - 1) - job.num_prefix;
    return own + (token * job.num_key_heads + number) * job.width;
  }
};

// Keys are the outputs of a product, the numbers of the width its inputs.
void pack_keys(const Head &head) {
  const int64_t pairs = head.job.width / 2;
  for (int64_t block = 0; block < head.padded() / 16; block++) {
    uint32_t *into = (uint32_t *)head.keys + block * pairs * 16;
    for (int64_t each = 0; each < 16; each++) {
      const uint32_t *from = (const uint32_t *)head.row(head.job.prefix_keys, head.job.keys, block * 16 + each);
      for (int64_t pair = 0; pair < pairs; pair++) into[pair * 16 + each] = from[pair];
    }
  }
}

// Values the other way round; what stands behind the last is weighed with 0.
void pack_values(const Head &head) {
  const int64_t pairs = head.padded() / 2;
  for (int64_t pair = 0; pair < pairs; pair++) {
    const uint16_t *first = head.row(head.job.prefix_values, head.job.values, 2 * pair);
    const uint16_t *second = head.row(head.job.prefix_values, head.job.values, 2 * pair + 1);
    for (int64_t block = 0; block < head.job.width / 16; block++) {
      __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(first + block * 16)));
      __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(second + block * 16)));
      _mm512_storeu_si512(head.values + (block * pairs + pair) * 32, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// Turn the scores of keys [first, end) into weights in bfloat16, the others into 0; gives what they add up to.
float weigh(const float *scores, int64_t first, int64_t end, int64_t count, float scaling, uint16_t *weights) {
  const __m512 factor = _mm512_set1_ps(scaling), least = _mm512_set1_ps(-INFINITY);
  __m512 largest = least, total = _mm512_setzero_ps();
  for (int64_t at = 0; at < count; at += 16)
    largest = _mm512_mask_max_ps(largest, there(first, end, at), largest, _mm512_loadu_ps(scores + at));
  largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest) * scaling);
  for (int64_t at = 0; at < count; at += 16) {
    __mmask16 mask = there(first, end, at);
    __m256i narrowed = _mm256_setzero_si256();
    if (mask) {
      __m512 weight = exponential(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), factor, largest));
      narrowed = narrow(_mm512_maskz_mov_ps(mask, weight));
      total = _mm512_add_ps(total, widen(narrowed));
    }
    _mm256_storeu_si256((__m256i *)(weights + at), narrowed);
  }
  return _mm512_reduce_add_ps(total);
}

// Queries [first, end) of the document, of all heads that share the keys.
void attend(const Head &head, int64_t first, int64_t end) {
  const DocumentJob &job = head.job;
  const int64_t width = job.width, shared = head.shared(), queries = end - first, rows = queries * shared;
  int64_t first_key = 0, end_key = job.causal ? job.num_prefix + end : head.num_keys;
  if (job.window) {
    first_key = std::max<int64_t>(0, job.num_prefix + first + 1 - job.window) / PADDED_KEYS * PADDED_KEYS;
    end_key = std::min(end_key, job.num_prefix + end - 1 + job.window);
  }
  const int64_t count = (end_key - first_key + PADDED_KEYS - 1) / PADDED_KEYS * PADDED_KEYS;
  int16_t *gathered = (int16_t *)scratch(QUERIES, rows * std::max(width, count) * 2);
  auto place = [&](int64_t row) {
    int64_t token = head.start + first + row / shared;
    return (token * job.num_heads + head.number * shared + row % shared) * width;
  };
  for (int64_t row = 0; row < rows; row++) std::memcpy(gathered + row * width, job.queries + place(row), width * 2);
  float *scores = (float *)scratch(SCORES, rows * count * sizeof(float));
  Matrix keys{(const uint8_t *)(head.keys + first_key * width), nullptr, nullptr, width, count, BF16, width};
  multiply(keys, Inputs{gathered, nullptr, rows}, scores, true, 1);
  float *averages = (float *)scratch(AVERAGES, rows * (width + 1) * sizeof(float)), *sums = averages + rows * width;
  uint16_t *weights = (uint16_t *)gathered;  // the queries are not needed any more
  for (int64_t row = 0; row < rows; row++) {
    const int64_t own = job.num_prefix + first + row / shared;
    int64_t from = job.window ? std::max<int64_t>(0, own + 1 - job.window) : 0;
    int64_t to = job.causal ? own + 1 : job.window ? std::min(head.num_keys, own + job.window) : head.num_keys;
    sums[row] = weigh(scores + row * count, from - first_key, to - first_key, count, (float)job.scaling, weights + row * count);
  }
  Matrix values{(const uint8_t *)(head.values + first_key * 16), nullptr, nullptr, count, width, BF16, head.padded()};
  multiply(values, Inputs{(int16_t *)weights, nullptr, rows}, averages, true, 1);
  for (int64_t row = 0; row < rows; row++) {
    __m512 share = _mm512_set1_ps(1.0f / sums[row]);
    uint16_t *into = job.outputs + place(row);
    for (int64_t at = 0; at < width; at += 16)
      store_narrow(into + at, _mm512_mul_ps(_mm512_loadu_ps(averages + row * width + at), share));
  }
}

void attend(const DocumentJob &job, int64_t document, int64_t key_head, int64_t start) {
  Head head{job, key_head, start, job.lengths[document], job.num_prefix + job.lengths[document], nullptr, nullptr};
  head.keys = (uint16_t *)scratch(KEYS, head.padded() * job.width * 2);
  head.values = (uint16_t *)scratch(VALUES, head.padded() * job.width * 2);
  pack_keys(head);
  pack_values(head);
  const int64_t most = std::min(MOST_QUERIES, std::max<int64_t>(8, MOST_SCORES / (head.padded() * head.shared())));
  for (int64_t query = 0; query < head.length; query += most)
    attend(head, query, std::min(query + most, head.length));
}

}  // namespace

extern "C" void lushan_attend_documents(const lushan::DocumentJob *job, int num_threads) {
  int64_t *starts = (int64_t *)lushan::scratch(AVERAGES + 1, (job->num_documents + 1) * sizeof(int64_t));
  starts[0] = 0;
  for (int64_t each = 0; each < job->num_documents; each++) starts[each + 1] = starts[each] + job->lengths[each];
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(dynamic)
  for (int64_t each = 0; each < job->num_documents * job->num_key_heads; each++)
    attend(*job, each / job->num_key_heads, each % job->num_key_heads, starts[each / job->num_key_heads]);
}
