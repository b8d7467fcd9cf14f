#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.hpp"
#include "parallel.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace {

// The gradients of weight and bias are sums over rows: each chunk adds up its own rows, then the chunks' sums are added
// in order. At most this many chunks, so the sums stay small.
constexpr int64_t kMaxChunks = 64;

inline int64_t rows_per_partial(int64_t n, int64_t D) {
  return std::max(rows_per_chunk(D), (n + kMaxChunks - 1) / kMaxChunks);
}

void add_partials(const float* partials, int64_t chunks, int64_t stride, float* sum, int64_t D) {
  std::fill_n(sum, D, 0.0f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* part = partials + chunk * stride;
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) sum[i] += part[i];
  }
}

}  // namespace

void layer_norm(const float* x, const float* weight, const float* bias, float* y, float* mean, float* scale, int64_t n,
                int64_t D, float eps) {
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = x + row * D;
      float* out = y + row * D;
      float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < D; ++i) sum += in[i];
      const float m = sum / static_cast<float>(D);
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < D; ++i) squares += (in[i] - m) * (in[i] - m);
      const float s = 1.0f / std::sqrt(squares / static_cast<float>(D) + eps);
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = (in[i] - m) * s * weight[i] + bias[i];
      mean[row] = m;
      scale[row] = s;
    }
  });
}

void layer_norm_grad(const float* x, const float* weight, const float* mean, const float* scale, const float* dy,
                     float* dx, float* dweight, float* dbias, int64_t n, int64_t D) {
  const int64_t size = rows_per_partial(n, D), chunks = (n + size - 1) / size;
  const std::unique_ptr<float[]> partials(new float[2 * chunks * D]());
  float* sums = partials.get();
  parallel_ranges(n, size, [=](int64_t begin, int64_t end) {
    float* dw = sums + begin / size * 2 * D;
    float* db = dw + D;
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * D, *g = dy + row * D;
      float* out = dx + row * D;
      const float m = mean[row], s = scale[row];
      float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
      for (int64_t i = 0; i < D; ++i) {
        const float normed = (in[i] - m) * s, weighted = g[i] * weight[i];
        a += weighted;
        b += weighted * normed;
        dw[i] += g[i] * normed;
        db[i] += g[i];
      }
      a /= static_cast<float>(D);
      b /= static_cast<float>(D);
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = s * (g[i] * weight[i] - a - (in[i] - m) * s * b);
    }
  });
  add_partials(sums, chunks, 2 * D, dweight, D);
  add_partials(sums + D, chunks, 2 * D, dbias, D);
}

void rms_norm(const float* x, const float* weight, float* y, float* scale, int64_t n, int64_t D, float eps) {
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = x + row * D;
      float* out = y + row * D;
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < D; ++i) squares += in[i] * in[i];
      const float s = 1.0f / std::sqrt(squares / static_cast<float>(D) + eps);
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = in[i] * s * weight[i];
      scale[row] = s;
    }
  });
}

void rms_norm_grad(const float* x, const float* weight, const float* scale, const float* dy, float* dx, float* dweight,
                   int64_t n, int64_t D) {
  const int64_t size = rows_per_partial(n, D), chunks = (n + size - 1) / size;
  const std::unique_ptr<float[]> partials(new float[chunks * D]());
  float* sums = partials.get();
  parallel_ranges(n, size, [=](int64_t begin, int64_t end) {
    float* dw = sums + begin / size * D;
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * D, *g = dy + row * D;
      float* out = dx + row * D;
      const float s = scale[row];
      float b = 0;
#pragma omp simd reduction(+ : b)
      for (int64_t i = 0; i < D; ++i) {
        const float normed = in[i] * s;
        b += g[i] * weight[i] * normed;
        dw[i] += g[i] * normed;
      }
      b /= static_cast<float>(D);
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = s * (g[i] * weight[i] - in[i] * s * b);
    }
  });
  add_partials(sums, chunks, D, dweight, D);
}

}  // namespace msllm
