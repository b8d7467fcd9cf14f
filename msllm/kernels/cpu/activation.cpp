#include "kernels.hpp"
#include "parallel.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace {

constexpr int64_t kChunk = 16384;
// GELU's tanh form is x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
constexpr float kTwoRoot = 1.59576912f, kCube = 0.044715f;

inline float tanh_gate(float x) { return sigmoid_fast(kTwoRoot * (x + kCube * x * x * x)); }

}  // namespace

void gelu(const float* x, float* y, int64_t count, bool tanh_form) {
  parallel_ranges(count, kChunk, [=](int64_t begin, int64_t end) {
    if (tanh_form) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] * tanh_gate(x[i]);
    } else {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] * normal_cdf(x[i]);
    }
  });
}

void gelu_grad(const float* x, const float* dy, float* dx, int64_t count, bool tanh_form) {
  parallel_ranges(count, kChunk, [=](int64_t begin, int64_t end) {
    if (tanh_form) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const float v = x[i], s = tanh_gate(v);
        dx[i] = dy[i] * (s + v * s * (1.0f - s) * kTwoRoot * (1.0f + 3.0f * kCube * v * v));
      }
    } else {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) dx[i] = dy[i] * (normal_cdf(x[i]) + x[i] * normal_density(x[i]));
    }
  });
}

void swiglu(const float* gate, const float* up, float* y, int64_t count) {
  parallel_ranges(count, kChunk, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = gate[i] * sigmoid_fast(gate[i]) * up[i];
  });
}

void swiglu_grad(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count) {
  parallel_ranges(count, kChunk, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = gate[i], s = sigmoid_fast(g);
      dup[i] = dy[i] * g * s;
      dgate[i] = dy[i] * up[i] * s * (1.0f + g * (1.0f - s));
    }
  });
}

void dropout(const float* x, float* y, int64_t n, int64_t D, const Dropout& mask) {
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint32_t key = mask.row_key(row);
      const float* in = x + row * D;
      float* out = y + row * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = in[i] * mask.factor(key, i);
    }
  });
}

}  // namespace msllm
