// A few tokens through all layers of a decoder-only model: nothing but the weights is read from memory, and nothing
// goes back to Python between the layers.
#include <algorithm>
#include <memory>

#include "kernels.hpp"
#include "parallel.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

class Decoder {
 public:
  Decoder(const std::vector<DecoderLayer>& layers, const DecoderStep& step) : step_(step), rows_(step.B * step.T) {
    int64_t D = 0, projected = 0, heads = 0, hidden = 0, H = 0;
    for (const DecoderLayer& layer : layers) {
      D = std::max(D, layer.output.O);
      projected = std::max(projected, (layer.H + 2 * layer.K) * layer.C);
      heads = std::max(heads, layer.H * layer.C);
      hidden = std::max(hidden, layer.up.O);
      H = std::max(H, layer.H);
    }
    memory_.reset(new float[rows_ * (D + projected + 3 * heads + 2 * hidden + H + 2)]);
    float* next = memory_.get();
    const auto take = [&](int64_t count) {
      float* start = next;
      next += rows_ * count;
      return start;
    };
    normed_ = take(D);
    projected_ = take(projected);
    turned_q_ = take(heads);
    turned_k_ = take(heads);
    attended_ = take(heads);
    hidden_ = take(hidden);
    gate_ = take(hidden);
    logsumexp_ = take(H);
    mean_ = take(1);
    deviation_ = take(1);
  }

  void run(const DecoderLayer& layer, float* keys, float* values, float* x) {
    normalise(layer.attention_norm, layer.output.O, x);
    attend(layer, keys, values);
    linear_few(attended_, layer.output, x, x, rows_);
    normalise(layer.mlp_norm, layer.output.O, x);
    feed_forward(layer);
    linear_few(hidden_, layer.down, x, x, rows_);
  }

 private:
  void normalise(const Norm& norm, int64_t D, const float* x) {
    if (norm.bias == nullptr) return rms_norm(x, nullptr, norm.weight, nullptr, normed_, deviation_, rows_, D, norm.eps);
    layer_norm(x, nullptr, norm.weight, norm.bias, nullptr, normed_, mean_, deviation_, rows_, D, norm.eps);
  }

  void attend(const DecoderLayer& layer, float* keys, float* values) {
    const int64_t H = layer.H, K = layer.K, C = layer.C, T = step_.T, S = step_.S;
    Rows q, k, v;
    if (layer.qkv.size() == 1) {
      linear_few(normed_, layer.qkv[0], nullptr, projected_, rows_);
      const int64_t width = 3 * H * C, head = layer.interleaved ? 3 * C : C, part = layer.interleaved ? C : H * C;
      q = {projected_, T * width, width, head};
      k = {projected_ + part, T * width, width, head};
      v = {projected_ + 2 * part, T * width, width, head};
    } else {
      const int64_t chunk = linear_few_chunk(layer.qkv[0]);
      float* parts[3] = {projected_, projected_ + rows_ * H * C, projected_ + rows_ * (H + K) * C};
      // The three as one list of chunks: a thread that is done with one goes on with the next.
      int64_t first[4] = {0};
      for (int i = 0; i < 3; ++i) first[i + 1] = first[i] + (layer.qkv[i].O + chunk - 1) / chunk;
      parallel_chunks(first[3], [&](int64_t n) {
        const int i = n >= first[2] ? 2 : n >= first[1] ? 1 : 0;
        const int64_t begin = (n - first[i]) * chunk, end = std::min(layer.qkv[i].O, begin + chunk);
        linear_few_columns(normed_, layer.qkv[i], begin, end, nullptr, parts[i], rows_);
      });
      q = {parts[0], T * H * C, H * C, C};
      k = {parts[1], T * K * C, K * C, C};
      v = {parts[2], T * K * C, K * C, C};
    }
    if (step_.cos != nullptr) {
      q = turn(q, H, C, turned_q_);
      k = turn(k, K, C, turned_k_);
    }
    cache_write(keys, k, step_.B, S, T, K, C, step_.start);
    cache_write(values, v, step_.B, S, T, K, C, step_.start);
    const AttentionShape shape = {step_.B,     T,    S,   H, K, C, step_.start + T, layer.scale, true, step_.key_mask,
                                  nullptr, step_.slopes, {}};
    attention(shape, q, {keys, S * K * C, K * C, C}, {values, S * K * C, K * C, C}, attended_, logsumexp_);
  }

  Rows turn(Rows x, int64_t heads, int64_t C, float* to) const {
    rotary(x.data, x.batch_stride, x.token_stride, x.head_stride, step_.cos, step_.sin, step_.table_batch_stride, to,
           step_.B, step_.T, heads, C, 1.0f);
    return {to, step_.T * heads * C, heads * C, C};
  }

  // Sets hidden_ to the activation of the up projection (times the gate's, where there is one).
  void feed_forward(const DecoderLayer& layer) {
    const int64_t F = layer.up.O;
    const bool gated = layer.activation == Activation::kSwiglu;
    parallel_ranges(F, linear_few_chunk(layer.up), [&](int64_t begin, int64_t end) {
      linear_few_columns(normed_, layer.up, begin, end, nullptr, hidden_, rows_);
      if (gated) linear_few_columns(normed_, layer.gate, begin, end, nullptr, gate_, rows_);
      for (int64_t row = 0; row < rows_; ++row) {
        float* out = hidden_ + row * F + begin;
        if (gated) {
          swiglu(gate_ + row * F + begin, out, out, end - begin);
        } else {
          gelu(out, out, end - begin, layer.activation == Activation::kGeluTanh);
        }
      }
    });
  }

  const DecoderStep& step_;
  const int64_t rows_;
  std::unique_ptr<float[]> memory_;
  float *normed_, *projected_, *turned_q_, *turned_k_, *attended_, *hidden_, *gate_, *logsumexp_, *mean_, *deviation_;
};

}  // namespace

void decode(const std::vector<DecoderLayer>& layers, const DecoderStep& step, const std::vector<float*>& keys,
            const std::vector<float*>& values, float* x) {
  Decoder decoder(layers, step);
  for (size_t i = 0; i < layers.size(); ++i) decoder.run(layers[i], keys[i], values[i], x);
}

}  // namespace MSLLM_PATH
}  // namespace msllm
