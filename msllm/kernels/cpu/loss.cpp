#include <cmath>
#include <limits>

#include "kernels.hpp"
#include "parallel.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace MSLLM_PATH {

int64_t cross_entropy(const float* logits, const int32_t* labels, float* loss, float* logsumexp, int64_t n, int64_t V,
                      int32_t ignore_index, float smoothing) {
  for (int64_t row = 0; row < n; ++row) {
    if (labels[row] != ignore_index && (labels[row] < 0 || labels[row] >= V)) return row;
  }
  parallel_ranges(n, rows_per_chunk(V), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (labels[row] == ignore_index) {
        loss[row] = logsumexp[row] = 0.0f;
        continue;
      }
      const float* x = logits + row * V;
      float top = -std::numeric_limits<float>::infinity(), sum = 0, below = 0;
#pragma omp simd reduction(max : top)
      for (int64_t i = 0; i < V; ++i) top = x[i] > top ? x[i] : top;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < V; ++i) sum += exp_fast(x[i] - top);
      logsumexp[row] = std::log(sum) + top;
      loss[row] = std::log(sum) + (top - x[labels[row]]);  // exact differences of large logits first
      if (smoothing == 0.0f) continue;
#pragma omp simd reduction(+ : below)
      for (int64_t i = 0; i < V; ++i) below += top - x[i];
      loss[row] += smoothing * (below / V - (top - x[labels[row]]));
    }
  });
  return -1;
}

void cross_entropy_grad(const float* logits, const int32_t* labels, const float* logsumexp, const float* dloss,
                        float* dlogits, int64_t n, int64_t V, int32_t ignore_index, float smoothing) {
  parallel_ranges(n, rows_per_chunk(V), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = logits + row * V;
      float* dx = dlogits + row * V;
      if (labels[row] == ignore_index) {
        for (int64_t i = 0; i < V; ++i) dx[i] = 0.0f;
        continue;
      }
      const float total = logsumexp[row], g = dloss[row], each = smoothing / V;
#pragma omp simd
      for (int64_t i = 0; i < V; ++i) dx[i] = g * (exp_fast(x[i] - total) - each);
      dx[labels[row]] -= g * (1.0f - smoothing);
    }
  });
}

}  // namespace MSLLM_PATH
}  // namespace msllm
