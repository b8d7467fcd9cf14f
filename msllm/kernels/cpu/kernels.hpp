// The kernels over raw pointers: float32, rows contiguous, no MindSpore. Names of sizes: B batch, T tokens, S keys,
// H heads, K key-value heads, C head width, n rows, D width, V vocabulary, I and O what a linear layer takes and gives.
//
// The sources that include this are compiled once a path (a set of vector instructions), each in a namespace of the
// path's name; paths.hpp chooses among them when the program runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "random_bits.hpp"

#ifndef MSLLM_PATH
#define MSLLM_PATH plain
#endif

namespace msllm {

struct AdamWTensor {
  float* param;
  const float* grad;
  float *exp_avg, *exp_avg_sq;
  int64_t count;
  double weight_decay;
};
struct AdamWStep {
  double lr, beta1, beta2, eps, grad_scale;
  int64_t step;
};

template <typename Float>
struct RowsOf {  // (batch, token, head) rows of C numbers
  Float* data;
  int64_t batch_stride, token_stride, head_stride;
  Float* at(int64_t b, int64_t t, int64_t h) const {
    return data + b * batch_stride + t * token_stride + h * head_stride;
  }
};
using Rows = RowsOf<const float>;
using MutableRows = RowsOf<float>;
struct AttentionShape {
  int64_t B, T, S, H, K, C;
  int64_t length;  // valid keys, <= S
  float scale;
  bool causal;
  const int32_t* key_mask;   // (B, length) or null
  const int32_t* row_start;  // (B, T) or null
  const float* slopes;       // (H,) or null
  Dropout dropout;
};

// One layer of a decoder-only model, for decoding: x + attention(norm(x)), then x + mlp(norm(x)).
struct LinearLayer {
  const float *weight, *bias;  // (O, I) and (O,) or null
  int64_t I, O;
};
struct Norm {
  const float *weight, *bias;  // bias is null in RMSNorm
  float eps;
};
enum class Activation { kGelu, kGeluTanh, kSwiglu };
struct DecoderLayer {
  Norm attention_norm, mlp_norm;
  std::vector<LinearLayer> qkv;  // one packed projection, or three
  bool interleaved;              // a packed one is (H, 3, C) rather than (3, H, C)
  LinearLayer output, gate, up, down;  // gate only with kSwiglu
  Activation activation;
  int64_t H, K, C;
  float scale;
};
struct DecoderStep {
  int64_t B, T, S, start;  // T new tokens in each of B rows, after `start` cached ones; the cache holds S
  const float *cos, *sin;  // (1 or B, T, C / 2) or null
  int64_t table_batch_stride;
  const float* slopes;       // (H,) or null
  const int32_t* key_mask;   // (B, start + T) or null
};

namespace MSLLM_PATH {

// activation.cpp
void gelu(const float* x, float* y, int64_t count, bool tanh_form);
void gelu_grad(const float* x, const float* dy, float* dx, int64_t count, bool tanh_form);
// y = GELU(x + bias) for n rows of D numbers.
void bias_gelu(const float* x, const float* bias, float* y, int64_t n, int64_t D, bool tanh_form);
// dx and its sum over the rows.
void bias_gelu_grad(const float* x, const float* bias, const float* dy, float* dx, float* dbias, int64_t n, int64_t D,
                    bool tanh_form);
void swiglu(const float* gate, const float* up, float* y, int64_t count);
void swiglu_grad(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count);
// Multiplies by the mask: the gradient of dropout is dropout of the gradient.
void dropout(const float* x, float* y, int64_t n, int64_t D, const Dropout& mask);

// norm.cpp: `mean` and `scale` (one over the standard deviation or the root mean square) are per row. With `add`, the
// norm is that of x + add, which goes to `sum`; then `x` of the gradient is that sum, `dsum` its gradient from
// elsewhere, and dx the gradient of both terms. Without, add, sum and dsum are null.
void layer_norm(const float* x, const float* add, const float* weight, const float* bias, float* sum, float* y,
                float* mean, float* scale, int64_t n, int64_t D, float eps);
void layer_norm_grad(const float* x, const float* weight, const float* mean, const float* scale, const float* dsum,
                     const float* dy, float* dx, float* dweight, float* dbias, int64_t n, int64_t D);
void rms_norm(const float* x, const float* add, const float* weight, float* sum, float* y, float* scale, int64_t n,
              int64_t D, float eps);
void rms_norm_grad(const float* x, const float* weight, const float* scale, const float* dsum, const float* dy,
                   float* dx, float* dweight, int64_t n, int64_t D);

// rows.cpp
void add_bias(float* y, const float* bias, int64_t n, int64_t D);
void column_sum(const float* x, float* sum, int64_t n, int64_t D);
void fill_zero(float* x, int64_t count);
// Row i takes (or, where `add`, adds) weight row ids[i % count]. Returns the index of the first id outside [0, V), or
// -1.
int64_t embedding(const int32_t* ids, int64_t count, const float* weight, bool add, float* y, int64_t n, int64_t V,
                  int64_t D);
// Adds the rows of dy to rows of dweight.
void embedding_grad(const int32_t* ids, int64_t count, const float* dy, float* dweight, int64_t n, int64_t D);
// Turns by the angle times `sign`: -1 gives the gradient. Strides of x in numbers; y is contiguous.
void rotary(const float* x, int64_t batch_stride, int64_t token_stride, int64_t head_stride, const float* cos,
            const float* sin, int64_t table_batch_stride, float* y, int64_t B, int64_t T, int64_t H, int64_t C,
            float sign);
// cos and sin (count, R) of the angles position * frequency.
void rotary_angles(const int32_t* positions, const float* frequencies, float* cos, float* sin, int64_t count,
                   int64_t R);
// Sets cache (B, S, K, C) at tokens start to start + T - 1.
void cache_write(float* cache, Rows fresh, int64_t B, int64_t S, int64_t T, int64_t K, int64_t C, int64_t start);

// loss.cpp: returns the index of the first label outside [0, V) that is not ignored, or -1.
int64_t cross_entropy(const float* logits, const int32_t* labels, float* loss, float* logsumexp, int64_t n, int64_t V,
                      int32_t ignore_index, float smoothing);
void cross_entropy_grad(const float* logits, const int32_t* labels, const float* logsumexp, const float* dloss,
                        float* dlogits, int64_t n, int64_t V, int32_t ignore_index, float smoothing);

// optimizer.cpp
void adamw(const std::vector<AdamWTensor>& tensors, const AdamWStep& step);
double sum_squares(const std::vector<std::pair<const float*, int64_t>>& tensors);

// attention_forward.cpp, attention_backward.cpp
// out (B, T, H, C) and logsumexp (B, H, T) are contiguous.
void attention(const AttentionShape& shape, Rows q, Rows k, Rows v, float* out, float* logsumexp);
void attention_grad(const AttentionShape& shape, Rows q, Rows k, Rows v, const float* out, const float* logsumexp,
                    const float* dout, MutableRows dq, MutableRows dk, MutableRows dv);

// matmul.cpp: c (M, N) = a b + bias, rows contiguous; a is (M, K), or (K, M) when transpose_a, b is (K, N), or
// (N, K), and bias is (N,) or null.
void matmul(const float* a, const float* b, const float* bias, float* c, int64_t M, int64_t N, int64_t K,
            bool transpose_a, bool transpose_b);

// linear_few.cpp: y (rows, O) = x (rows, I) w^T + bias + add for at most kFewRows rows; bias and add may be null.
void linear_few(const float* x, const LinearLayer& layer, const float* add, float* y, int64_t rows);
// Its columns [begin, end) on the calling thread, and how many of them make a chunk of work.
void linear_few_columns(const float* x, const LinearLayer& layer, int64_t begin, int64_t end, const float* add,
                        float* y, int64_t rows);
int64_t linear_few_chunk(const LinearLayer& layer);

// decoder.cpp: x (B, T, D), at most kFewRows rows, through all layers in place; keys and values, (B, S, K, C) of each
// layer, take in the new tokens.
void decode(const std::vector<DecoderLayer>& layers, const DecoderStep& step, const std::vector<float*>& keys,
            const std::vector<float*>& values, float* x);

}  // namespace MSLLM_PATH

// Rows up to which linear_few is faster than matmul: it reads the weight once, in order.
constexpr int64_t kFewRows = 8;

// One path's kernels.
struct Kernels {
#define MSLLM_KERNEL(name) decltype(&MSLLM_PATH::name) name;
#include "kernel_names.inc"
#undef MSLLM_KERNEL
};

}  // namespace msllm
