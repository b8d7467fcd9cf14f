#include <memory>

#include "kernels.hpp"
#include "parallel.hpp"
#include "row_sums.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

constexpr int64_t kChunk = 16384;
// GELU's tanh form is x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
constexpr float kTwoRoot = 1.59576912f, kCube = 0.044715f;

inline float tanh_gate(float x) { return sigmoid_fast(kTwoRoot * (x + kCube * x * x * x)); }

template <bool kTanh>
inline float gelu_of(float x) {
  return x * (kTanh ? tanh_gate(x) : normal_cdf(x));
}

template <bool kTanh>
inline float gelu_slope(float x) {
  if (!kTanh) return normal_cdf(x) + x * normal_density(x);
  const float s = tanh_gate(x);
  return s + x * s * (1.0f - s) * kTwoRoot * (1.0f + 3.0f * kCube * x * x);
}

template <bool kTanh>
void gelu_kind(const float* x, float* y, int64_t count) {
  parallel_ranges(count, kChunk, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = gelu_of<kTanh>(x[i]);
  });
}

template <bool kTanh>
void gelu_grad_kind(const float* x, const float* dy, float* dx, int64_t count) {
  parallel_ranges(count, kChunk, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) dx[i] = dy[i] * gelu_slope<kTanh>(x[i]);
  });
}

template <bool kTanh>
void bias_gelu_kind(const float* x, const float* bias, float* y, int64_t n, int64_t D) {
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = x + row * D;
      float* out = y + row * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] = gelu_of<kTanh>(in[i] + bias[i]);
    }
  });
}

template <bool kTanh>
void bias_gelu_grad_kind(const float* x, const float* bias, const float* dy, float* dx, float* dbias, int64_t n,
                         int64_t D) {
  const int64_t size = rows_per_partial(n, D), chunks = (n + size - 1) / size;
  const std::unique_ptr<float[]> partials(new float[chunks * D]());
  float* sums = partials.get();
  parallel_ranges(n, size, [=](int64_t begin, int64_t end) {
    float* sum = sums + begin / size * D;
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * D, *g = dy + row * D;
      float* out = dx + row * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) {
        const float d = g[i] * gelu_slope<kTanh>(in[i] + bias[i]);
        out[i] = d;
        sum[i] += d;
      }
    }
  });
  add_partials(sums, chunks, D, dbias, D);
}

}  // namespace

void gelu(const float* x, float* y, int64_t count, bool tanh_form) {
  (tanh_form ? gelu_kind<true> : gelu_kind<false>)(x, y, count);
}

void gelu_grad(const float* x, const float* dy, float* dx, int64_t count, bool tanh_form) {
  (tanh_form ? gelu_grad_kind<true> : gelu_grad_kind<false>)(x, dy, dx, count);
}

void bias_gelu(const float* x, const float* bias, float* y, int64_t n, int64_t D, bool tanh_form) {
  (tanh_form ? bias_gelu_kind<true> : bias_gelu_kind<false>)(x, bias, y, n, D);
}

void bias_gelu_grad(const float* x, const float* bias, const float* dy, float* dx, float* dbias, int64_t n, int64_t D,
                    bool tanh_form) {
  (tanh_form ? bias_gelu_grad_kind<true> : bias_gelu_grad_kind<false>)(x, bias, dy, dx, dbias, n, D);
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

}  // namespace MSLLM_PATH
}  // namespace msllm
