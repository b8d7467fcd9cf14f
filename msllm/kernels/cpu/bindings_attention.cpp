// Attention, rotary positions and whole decoder layers as Python functions over MindSpore tensors.
#include "tensors.hpp"

namespace msllm_bindings {
namespace {

// Rows of C numbers that may lie anywhere; a tensor whose last axis is not contiguous is copied first.
Tensor with_contiguous_rows(const Tensor& t) {
  if (t.stride().back() != 1) return t.contiguous();
  t.SetNeedContiguous(false);
  return t;
}

msllm::MutableRows rows_of(const Tensor& t) {
  const auto stride = t.stride();
  return {floats(t), stride[0], stride[1], stride[2]};
}

msllm::Rows read(const msllm::MutableRows& rows) {
  return {rows.data, rows.batch_stride, rows.token_stride, rows.head_stride};
}

Tensor rotary(const Tensor& x, const Tensor& given_cos, const Tensor& given_sin, bool backward) {
  const Tensor in = with_contiguous_rows(x), cos = dense(given_cos), sin = dense(given_sin);
  Tensor y = like(x);
  launch("rotary", {in, cos, sin}, {y}, [=] {
    const auto& shape = in.shape();
    const msllm::Rows from = read(rows_of(in));
    const int64_t table_stride = cos.shape()[0] == 1 ? 0 : cos.shape()[1] * cos.shape()[2];
    msllm::kernels().rotary(from.data, from.batch_stride, from.token_stride, from.head_stride, floats(cos),
                            floats(sin), table_stride, floats(y), shape[0], shape[1], shape[2], shape[3],
                            backward ? -1.0f : 1.0f);
  });
  return y;
}

Tensors rotary_angles(const Tensor& given_positions, const Tensor& given_frequencies) {
  const Tensor positions = dense(given_positions), frequencies = dense(given_frequencies);
  const int64_t R = count(frequencies);
  ShapeVector shape = positions.shape();
  shape.push_back(R);
  Tensor cos = make(shape), sin = make(shape);
  launch("rotary_angles", {positions, frequencies}, {cos, sin}, [=] {
    msllm::kernels().rotary_angles(ints(positions), floats(frequencies), floats(cos), floats(sin), count(positions), R);
  });
  return {cos, sin};
}

void cache_write(const Tensor& cache, const Tensor& given, int64_t start) {
  require_dense(cache, "cache_write: cache");
  const Tensor fresh = with_contiguous_rows(given);
  launch("cache_write", {cache, fresh}, {}, [=] {
    const auto& shape = fresh.shape();
    msllm::kernels().cache_write(floats(cache), read(rows_of(fresh)), shape[0], cache.shape()[1], shape[1], shape[2],
                                 shape[3], start);
  });
}

struct AttentionOptions {
  double scale, dropout;
  bool causal;
  int64_t length;
  uint32_t seed, call;
};

// The masks of attention, and what they and the options make of a shape.
class Masks {
 public:
  Masks(const Optional& key_mask, const Optional& row_start, const Optional& slopes, const AttentionOptions& options)
      : key_mask_(dense(key_mask)), row_start_(dense(row_start)), slopes_(dense(slopes)), options_(options) {}

  // The tensors that an operator reads: those given, and the masks that are there.
  Tensors with(Tensors all) const {
    for (const Optional* optional : {&key_mask_, &row_start_, &slopes_}) {
      if (optional->has_value()) all.push_back(optional->value());
    }
    return all;
  }

  msllm::AttentionShape shape(int64_t B, int64_t T, int64_t S, int64_t H, int64_t K, int64_t C) const {
    msllm::AttentionShape shape{B,       T,       S,       H, K, C, options_.length, static_cast<float>(options_.scale),
                                options_.causal, nullptr, nullptr, nullptr, {}};
    if (key_mask_) shape.key_mask = ints(*key_mask_);
    if (row_start_) shape.row_start = ints(*row_start_);
    if (slopes_) shape.slopes = floats(*slopes_);
    if (options_.dropout > 0) shape.dropout = msllm::Dropout(options_.seed, options_.call, options_.dropout);
    return shape;
  }

  msllm::AttentionShape shape(const Tensor& q_BTHC, const Tensor& k_BSKC) const {
    const auto &q = q_BTHC.shape(), &k = k_BSKC.shape();
    return shape(q[0], q[1], k[1], q[2], k[2], q[3]);
  }

 private:
  Optional key_mask_, row_start_, slopes_;
  AttentionOptions options_;
};

Tensors attention(const Tensor& given_q, const Tensor& given_k, const Tensor& given_v, const Optional& key_mask,
                  const Optional& row_start, const Optional& slopes, const AttentionOptions& options) {
  const Tensor q = with_contiguous_rows(given_q), k = with_contiguous_rows(given_k), v = with_contiguous_rows(given_v);
  const Masks masks(key_mask, row_start, slopes, options);
  const auto& shape = q.shape();
  Tensor out = make(shape), logsumexp = make({shape[0], shape[2], shape[1]});
  launch("attention", masks.with({q, k, v}), {out, logsumexp}, [=] {
    msllm::kernels().attention(masks.shape(q, k), read(rows_of(q)), read(rows_of(k)), read(rows_of(v)), floats(out),
                               floats(logsumexp));
  });
  return {out, logsumexp};
}

Tensors attention_grad(const Tensor& given_q, const Tensor& given_k, const Tensor& given_v, const Optional& key_mask,
                       const Optional& row_start, const Optional& slopes, const AttentionOptions& options,
                       const Tensor& out, const Tensor& logsumexp, const Tensor& given_dout) {
  const Tensor q = with_contiguous_rows(given_q), k = with_contiguous_rows(given_k), v = with_contiguous_rows(given_v);
  const Masks masks(key_mask, row_start, slopes, options);
  const Tensor dout = dense(given_dout);
  Tensor dq = like(q), dk = like(k), dv = like(v);
  launch("attention_grad", masks.with({q, k, v, out, logsumexp, dout}), {dq, dk, dv}, [=] {
    msllm::kernels().attention_grad(masks.shape(q, k), read(rows_of(q)), read(rows_of(k)), read(rows_of(v)),
                                    floats(out), floats(logsumexp), floats(dout), rows_of(dq), rows_of(dk),
                                    rows_of(dv));
  });
  return {dq, dk, dv};
}

// Queries (0), keys (1) or values (2) within a packed projection (B, T, 3 H C): (3, H, C), or (H, 3, C) if interleaved.
msllm::MutableRows packed_rows(const Tensor& qkv, int64_t H, bool interleaved, int64_t part) {
  const int64_t width = last(qkv), C = width / (3 * H);
  return {floats(qkv) + part * (interleaved ? C : H * C), qkv.shape()[1] * width, width, interleaved ? 3 * C : C};
}

msllm::AttentionShape packed_shape(const Masks& masks, const Tensor& qkv, int64_t H) {
  const int64_t B = qkv.shape()[0], T = qkv.shape()[1];
  return masks.shape(B, T, T, H, H, last(qkv) / (3 * H));
}

Tensors packed_attention(const Tensor& qkv, int64_t H, bool interleaved, const Optional& key_mask,
                         const Optional& row_start, const Optional& slopes, const AttentionOptions& options) {
  const Masks masks(key_mask, row_start, slopes, options);
  const int64_t B = qkv.shape()[0], T = qkv.shape()[1];
  Tensor out = make({B, T, last(qkv) / 3}), logsumexp = make({B, H, T});
  launch("packed_attention", masks.with({qkv}), {out, logsumexp}, [=] {
    msllm::kernels().attention(packed_shape(masks, qkv, H), read(packed_rows(qkv, H, interleaved, 0)),
                               read(packed_rows(qkv, H, interleaved, 1)), read(packed_rows(qkv, H, interleaved, 2)),
                               floats(out), floats(logsumexp));
  });
  return {out, logsumexp};
}

Tensor packed_attention_grad(const Tensor& qkv, int64_t H, bool interleaved, const Optional& key_mask,
                             const Optional& row_start, const Optional& slopes, const AttentionOptions& options,
                             const Tensor& out, const Tensor& logsumexp, const Tensor& dout) {
  const Masks masks(key_mask, row_start, slopes, options);
  Tensor dqkv = like(qkv);
  launch("packed_attention_grad", masks.with({qkv, out, logsumexp, dout}), {dqkv}, [=] {
    msllm::kernels().attention_grad(
        packed_shape(masks, qkv, H), read(packed_rows(qkv, H, interleaved, 0)),
        read(packed_rows(qkv, H, interleaved, 1)), read(packed_rows(qkv, H, interleaved, 2)), floats(out),
        floats(logsumexp), floats(dout), packed_rows(dqkv, H, interleaved, 0), packed_rows(dqkv, H, interleaved, 1),
        packed_rows(dqkv, H, interleaved, 2));
  });
  return dqkv;
}

// A linear layer's weight and bias; the tensors are kept, as their memory may move.
struct LinearTensors {
  Tensor weight;
  Optional bias;
  msllm::LinearLayer get() const {
    return {floats(weight), bias ? floats(*bias) : nullptr, last(weight), weight.shape()[0]};
  }
};

struct NormTensors {
  Tensor weight;
  Optional bias;
  double eps;
  msllm::Norm get() const { return {floats(weight), bias ? floats(*bias) : nullptr, static_cast<float>(eps)}; }
};

struct LayerTensors {
  NormTensors attention_norm, mlp_norm;
  std::vector<LinearTensors> qkv;
  LinearTensors output, up, down;
  std::optional<LinearTensors> gate;
  bool interleaved, gelu_tanh;
  int64_t H, K, C;
  double scale;

  msllm::DecoderLayer get() const {
    msllm::DecoderLayer layer{};
    layer.attention_norm = attention_norm.get();
    layer.mlp_norm = mlp_norm.get();
    for (const LinearTensors& linear : qkv) layer.qkv.push_back(linear.get());
    layer.output = output.get();
    layer.up = up.get();
    layer.down = down.get();
    if (gate) layer.gate = gate->get();
    layer.activation = gate        ? msllm::Activation::kSwiglu
                       : gelu_tanh ? msllm::Activation::kGeluTanh
                                   : msllm::Activation::kGelu;
    layer.interleaved = interleaved;
    layer.H = H;
    layer.K = K;
    layer.C = C;
    layer.scale = static_cast<float>(scale);
    return layer;
  }
};

// Shared with the operator, which may run after the call has returned.
struct LayerList {
  std::shared_ptr<const std::vector<LayerTensors>> layers;
};

Tensor decode(const LayerList& list, const Tensor& given_x, const Tensors& keys,
              const Tensors& values, int64_t start, const Optional& given_cos, const Optional& given_sin,
              const Optional& given_slopes, const Optional& given_key_mask) {
  const Tensor x = dense(given_x);
  const Optional cos = dense(given_cos), sin = dense(given_sin), slopes = dense(given_slopes),
                 key_mask = dense(given_key_mask);
  for (const Tensors* list : {&keys, &values}) {
    for (const Tensor& cache : *list) require_dense(cache, "decode: a cache");
  }
  Tensors inputs = {x};
  for (const Optional* optional : {&cos, &sin, &slopes, &key_mask}) {
    if (optional->has_value()) inputs.push_back(optional->value());
  }
  inputs.insert(inputs.end(), keys.begin(), keys.end());
  inputs.insert(inputs.end(), values.begin(), values.end());
  Tensor y = like(x);
  launch("decode", inputs, {y}, [=] {
    std::vector<msllm::DecoderLayer> all;
    for (const LayerTensors& layer : *list.layers) all.push_back(layer.get());
    std::vector<float*> key_data, value_data;
    for (const Tensor& cache : keys) key_data.push_back(floats(cache));
    for (const Tensor& cache : values) value_data.push_back(floats(cache));
    msllm::DecoderStep step{x.shape()[0], x.shape()[1], keys[0].shape()[1], start, nullptr, nullptr, 0, nullptr,
                            nullptr};
    if (cos) {
      step.cos = floats(*cos);
      step.sin = floats(*sin);
      step.table_batch_stride = cos->shape()[0] == 1 ? 0 : cos->shape()[1] * cos->shape()[2];
    }
    if (slopes) step.slopes = floats(*slopes);
    if (key_mask) step.key_mask = ints(*key_mask);
    std::copy_n(floats(x), count(x), floats(y));
    msllm::kernels().decode(all, step, key_data, value_data, floats(y));
  });
  return y;
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<AttentionOptions>(m, "AttentionOptions")
      .def(py::init([](double scale, double dropout, bool causal, int64_t length, uint32_t seed, uint32_t call) {
        return AttentionOptions{scale, dropout, causal, length, seed, call};
      }));
  bind_strided<1>(m, "rotary", rotary);
  bind_strided<2>(m, "rotary_angles", rotary_angles);
  bind_strided<0>(m, "cache_write", cache_write);
  bind_strided<2>(m, "attention", attention);
  bind_strided<3>(m, "attention_grad", attention_grad);
  bind<2>(m, "packed_attention", packed_attention);
  bind<1>(m, "packed_attention_grad", packed_attention_grad);
  py::class_<LinearTensors>(m, "Linear").def(py::init<Tensor, Optional>());
  py::class_<NormTensors>(m, "Norm").def(py::init<Tensor, Optional, double>());
  py::class_<LayerTensors>(m, "DecoderLayer")
      .def(py::init([](const NormTensors& attention_norm, const NormTensors& mlp_norm,
                       const std::vector<LinearTensors>& qkv, const LinearTensors& output,
                       const std::optional<LinearTensors>& gate, const LinearTensors& up, const LinearTensors& down,
                       bool interleaved, bool gelu_tanh, int64_t H, int64_t K, int64_t C, double scale) {
        return LayerTensors{attention_norm, mlp_norm, qkv, output, up, down, gate, interleaved, gelu_tanh, H, K, C,
                            scale};
      }));
  py::class_<LayerList>(m, "DecoderLayers").def(py::init([](const std::vector<LayerTensors>& layers) {
    return LayerList{std::make_shared<const std::vector<LayerTensors>>(layers)};
  }));
  m.attr("FEW_ROWS") = msllm::kFewRows;
  bind_strided<1>(m, "decode", decode);
}

}  // namespace msllm_bindings
