// Sums over rows, as the gradients of norms and biases are: each chunk of rows adds up its own, then the chunks' sums
// are added in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.hpp"

namespace msllm {
namespace MSLLM_PATH {

constexpr int64_t kMostPartials = 64;  // so that the sums stay small

// Rows of width D in a chunk.
inline int64_t rows_per_partial(int64_t n, int64_t D) {
  return std::max(rows_per_chunk(D), (n + kMostPartials - 1) / kMostPartials);
}

// sum (D,) = the sum of the chunks' sums, which lie `stride` apart.
inline void add_partials(const float* partials, int64_t chunks, int64_t stride, float* sum, int64_t D) {
  std::fill_n(sum, D, 0.0f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* part = partials + chunk * stride;
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) sum[i] += part[i];
  }
}

}  // namespace MSLLM_PATH
}  // namespace msllm
