#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.hpp"
#include "parallel.hpp"
#include "row_sums.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

// Writes x + add of one row and returns the row.
inline const float* add_row(const float* x, const float* add, float* sum, int64_t row, int64_t D) {
  const float *left = x + row * D, *right = add + row * D;
  float* out = sum + row * D;
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) out[i] = left[i] + right[i];
  return out;
}

// The sum of (x - m)^2.
inline float sum_of_squares(const float* x, float m, int64_t D) {
  const Vec centre = splat(m);
  return sum_over(
      D,
      [=](int64_t i) {
        const Vec d = load(x + i) - centre;
        return d * d;
      },
      [=](int64_t i) { return (x[i] - m) * (x[i] - m); });
}

inline void add_to_row(float* row, const float* more, int64_t D) {
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) row[i] += more[i];
}

}  // namespace

void layer_norm(const float* x, const float* add, const float* weight, const float* bias, float* sum_out, float* y,
                float* mean, float* scale, int64_t n, int64_t D, float eps) {
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = add == nullptr ? x + row * D : add_row(x, add, sum_out, row, D);
      float* out = y + row * D;
      const float m = sum_over(D, [=](int64_t i) { return load(in + i); }, [=](int64_t i) { return in[i]; }) /
                      static_cast<float>(D);
      const float squares = sum_of_squares(in, m, D);
      const float s = 1.0f / std::sqrt(squares / static_cast<float>(D) + eps);
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = (in[i] - m) * s * weight[i] + bias[i];
      mean[row] = m;
      scale[row] = s;
    }
  });
}

void layer_norm_grad(const float* x, const float* weight, const float* mean, const float* scale, const float* dsum,
                     const float* dy, float* dx, float* dweight, float* dbias, int64_t n, int64_t D) {
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
      if (dsum != nullptr) add_to_row(out, dsum + row * D, D);
    }
  });
  add_partials(sums, chunks, 2 * D, dweight, D);
  add_partials(sums + D, chunks, 2 * D, dbias, D);
}

void rms_norm(const float* x, const float* add, const float* weight, float* sum_out, float* y, float* scale, int64_t n,
              int64_t D, float eps) {
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = add == nullptr ? x + row * D : add_row(x, add, sum_out, row, D);
      float* out = y + row * D;
      const float squares = sum_of_squares(in, 0.0f, D);
      const float s = 1.0f / std::sqrt(squares / static_cast<float>(D) + eps);
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = in[i] * s * weight[i];
      scale[row] = s;
    }
  });
}

void rms_norm_grad(const float* x, const float* weight, const float* scale, const float* dsum, const float* dy,
                   float* dx, float* dweight, int64_t n, int64_t D) {
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
      if (dsum != nullptr) add_to_row(out, dsum + row * D, D);
    }
  });
  add_partials(sums, chunks, D, dweight, D);
}

}  // namespace MSLLM_PATH
}  // namespace msllm
