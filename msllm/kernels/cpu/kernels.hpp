// The kernels over raw pointers: float32, rows contiguous, no MindSpore. Names of sizes: B batch, T tokens, S keys,
// H heads, K key-value heads, C head width, n rows, D width, V vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "random_bits.hpp"

namespace msllm {

// activation.cpp
void gelu(const float* x, float* y, int64_t count, bool tanh_form);
void gelu_grad(const float* x, const float* dy, float* dx, int64_t count, bool tanh_form);
void swiglu(const float* gate, const float* up, float* y, int64_t count);
void swiglu_grad(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count);
// Multiplies by the mask: the gradient of dropout is dropout of the gradient.
void dropout(const float* x, float* y, int64_t n, int64_t D, const Dropout& mask);

// norm.cpp: `mean` and `scale` (one over the standard deviation or the root mean square) are per row.
void layer_norm(const float* x, const float* weight, const float* bias, float* y, float* mean, float* scale, int64_t n,
                int64_t D, float eps);
void layer_norm_grad(const float* x, const float* weight, const float* mean, const float* scale, const float* dy,
                     float* dx, float* dweight, float* dbias, int64_t n, int64_t D);
void rms_norm(const float* x, const float* weight, float* y, float* scale, int64_t n, int64_t D, float eps);
void rms_norm_grad(const float* x, const float* weight, const float* scale, const float* dy, float* dx, float* dweight,
                   int64_t n, int64_t D);

// rows.cpp
void add_bias(float* y, const float* bias, int64_t n, int64_t D);
void column_sum(const float* x, float* sum, int64_t n, int64_t D);
void fill_zero(float* x, int64_t count);
// The two for embeddings return the index of the first id outside [0, V), or -1 when all is well.
int64_t embedding(const int32_t* ids, const float* weight, float* y, int64_t n, int64_t V, int64_t D);
void embedding_grad(const int32_t* ids, const float* dy, float* dweight, int64_t n, int64_t V, int64_t D);
// Turns by the angle times `sign`: -1 gives the gradient. Strides of x in numbers; y is contiguous.
void rotary(const float* x, int64_t batch_stride, int64_t token_stride, int64_t head_stride, const float* cos,
            const float* sin, int64_t table_batch_stride, float* y, int64_t B, int64_t T, int64_t H, int64_t C,
            float sign);
void cache_write(float* cache, const float* fresh, int64_t B, int64_t S, int64_t T, int64_t width, int64_t start);

// loss.cpp: returns the index of the first label outside [0, V) that is not ignored, or -1.
int64_t cross_entropy(const float* logits, const int32_t* labels, float* loss, float* logsumexp, int64_t n, int64_t V,
                      int32_t ignore_index);
void cross_entropy_grad(const float* logits, const int32_t* labels, const float* logsumexp, const float* dloss,
                        float* dlogits, int64_t n, int64_t V, int32_t ignore_index);

// optimizer.cpp
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
void adamw(const std::vector<AdamWTensor>& tensors, const AdamWStep& step);
double sum_squares(const std::vector<std::pair<const float*, int64_t>>& tensors);

// attention_forward.cpp, attention_backward.cpp
struct Rows {  // (batch, token, head) rows of C numbers
  const float* data;
  int64_t batch_stride, token_stride, head_stride;
  const float* at(int64_t b, int64_t t, int64_t h) const {
    return data + b * batch_stride + t * token_stride + h * head_stride;
  }
};
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
// out (B, T, H, C) and logsumexp (B, H, T) are contiguous; so are the gradients.
void attention(const AttentionShape& shape, Rows q, Rows k, Rows v, float* out, float* logsumexp);
void attention_grad(const AttentionShape& shape, Rows q, Rows k, Rows v, const float* out, const float* logsumexp,
                    const float* dout, float* dq, float* dk, float* dv);

}  // namespace msllm
