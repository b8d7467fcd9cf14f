// The kernels as Python functions over MindSpore tensors. Shapes and types are checked by cpu.py before it calls.
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "matmul.hpp"
#include "ms_extension/all.h"
#include "parallel.hpp"

namespace {

using Runner = ms::pynative::PyboostRunner;
using ms::Tensor;
using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;

class Kernel : public Runner {
 public:
  Kernel(const char* name, std::function<void()> body) : Runner(name), body_(std::move(body)) {}
  void LaunchKernel() override { body_(); }

 private:
  std::function<void()> body_;
};

// MindSpore gives every input and output memory, then calls body.
void launch(const char* name, const Tensors& inputs, const Tensors& outputs, std::function<void()> body) {
  std::make_shared<Kernel>(name, std::move(body))->Run(inputs, outputs);
}

float* floats(const Tensor& t) { return t.data_ptr<float>(); }
const int32_t* ints(const Tensor& t) { return t.data_ptr<int32_t>(); }
int64_t count(const Tensor& t) { return static_cast<int64_t>(t.numel()); }
int64_t last(const Tensor& t) { return t.shape().back(); }
int64_t rows(const Tensor& t) { return last(t) == 0 ? 0 : count(t) / last(t); }
Tensor make(const ShapeVector& shape) { return Tensor(mindspore::kNumberTypeFloat32, shape); }
Tensor like(const Tensor& t) { return make(t.shape()); }

// A view's numbers lie apart: this copies them together. Other arguments pass through.
template <typename T>
const T& dense(const T& value) {
  return value;
}
Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : t.contiguous(); }
Optional dense(const Optional& t) { return t ? Optional(dense(*t)) : t; }
Tensors dense(const Tensors& tensors) {
  Tensors all;
  for (const Tensor& t : tensors) all.push_back(dense(t));
  return all;
}

// What is changed in place cannot be copied first.
void require_dense(const Tensor& t, const char* what) {
  if (!t.is_contiguous()) throw std::invalid_argument(std::string(what) + " must be contiguous: it is changed in place");
}

ShapeVector without_last(const Tensor& t) { return {t.shape().begin(), t.shape().end() - 1}; }

void check_index(int64_t bad_row, const Tensor& ids, int64_t limit, const char* what) {
  if (bad_row < 0) return;
  throw std::out_of_range(std::string(what) + " " + std::to_string(ints(ids)[bad_row]) + " at position " +
                          std::to_string(bad_row) + " is outside [0, " + std::to_string(limit) + ")");
}

Tensor gelu(const Tensor& x, bool tanh_form) {
  Tensor y = like(x);
  launch("gelu", {x}, {y}, [=] { msllm::gelu(floats(x), floats(y), count(x), tanh_form); });
  return y;
}

Tensor gelu_grad(const Tensor& x, const Tensor& dy, bool tanh_form) {
  Tensor dx = like(x);
  launch("gelu_grad", {x, dy}, {dx},
         [=] { msllm::gelu_grad(floats(x), floats(dy), floats(dx), count(x), tanh_form); });
  return dx;
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  Tensor y = like(gate);
  launch("swiglu", {gate, up}, {y}, [=] { msllm::swiglu(floats(gate), floats(up), floats(y), count(gate)); });
  return y;
}

Tensors swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy) {
  Tensor dgate = like(gate), dup = like(gate);
  launch("swiglu_grad", {gate, up, dy}, {dgate, dup}, [=] {
    msllm::swiglu_grad(floats(gate), floats(up), floats(dy), floats(dgate), floats(dup), count(gate));
  });
  return {dgate, dup};
}

Tensor dropout(const Tensor& x, uint32_t seed, uint32_t call, double p) {
  Tensor y = like(x);
  const msllm::Dropout mask(seed, call, p);
  launch("dropout", {x}, {y}, [=] { msllm::dropout(floats(x), floats(y), rows(x), last(x), mask); });
  return y;
}

Tensors layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  Tensor y = like(x), mean = make(without_last(x)), scale = make(without_last(x));
  launch("layer_norm", {x, weight, bias}, {y, mean, scale}, [=] {
    msllm::layer_norm(floats(x), floats(weight), floats(bias), floats(y), floats(mean), floats(scale), rows(x),
                      last(x), static_cast<float>(eps));
  });
  return {y, mean, scale};
}

Tensors layer_norm_grad(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& scale,
                        const Tensor& dy) {
  Tensor dx = like(x), dweight = like(weight), dbias = like(weight);
  launch("layer_norm_grad", {x, weight, mean, scale, dy}, {dx, dweight, dbias}, [=] {
    msllm::layer_norm_grad(floats(x), floats(weight), floats(mean), floats(scale), floats(dy), floats(dx),
                           floats(dweight), floats(dbias), rows(x), last(x));
  });
  return {dx, dweight, dbias};
}

Tensors rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  Tensor y = like(x), scale = make(without_last(x));
  launch("rms_norm", {x, weight}, {y, scale}, [=] {
    msllm::rms_norm(floats(x), floats(weight), floats(y), floats(scale), rows(x), last(x), static_cast<float>(eps));
  });
  return {y, scale};
}

Tensors rms_norm_grad(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& dy) {
  Tensor dx = like(x), dweight = like(weight);
  launch("rms_norm_grad", {x, weight, scale, dy}, {dx, dweight}, [=] {
    msllm::rms_norm_grad(floats(x), floats(weight), floats(scale), floats(dy), floats(dx), floats(dweight), rows(x),
                         last(x));
  });
  return {dx, dweight};
}

// a b for matrices, either of them transposed.
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  const int64_t M = a.shape()[transpose_a ? 1 : 0], K = a.shape()[transpose_a ? 0 : 1];
  Tensor c = make({M, b.shape()[transpose_b ? 0 : 1]});
  launch("matmul", {a, b}, {c}, [=] {
    msllm::matmul(floats(a), floats(b), floats(c), M, last(c), K, transpose_a, transpose_b);
  });
  return c;
}

Tensor linear(const Tensor& x, const Tensor& weight, const Optional& bias) {
  const int64_t n = rows(x), I = last(x), O = weight.shape()[0];
  ShapeVector shape = without_last(x);
  shape.push_back(O);
  Tensor y = make(shape);
  Tensors inputs = {x, weight};
  if (bias) inputs.push_back(*bias);
  launch("linear", inputs, {y}, [=] {
    const float* b = bias ? floats(*bias) : nullptr;
    if (n <= msllm::kFewRows) return msllm::linear_few(floats(x), floats(weight), b, floats(y), n, I, O);
    msllm::matmul(floats(x), floats(weight), floats(y), n, O, I, false, true);
    if (b) msllm::add_bias(floats(y), b, n, O);
  });
  return y;
}

void add_bias(const Tensor& y, const Tensor& given_bias) {
  require_dense(y, "add_bias: y");
  const Tensor bias = dense(given_bias);
  launch("add_bias", {y, bias}, {}, [=] { msllm::add_bias(floats(y), floats(bias), rows(y), last(y)); });
}

Tensor column_sum(const Tensor& x) {
  Tensor sum = make({last(x)});
  launch("column_sum", {x}, {sum}, [=] { msllm::column_sum(floats(x), floats(sum), rows(x), last(x)); });
  return sum;
}

Tensor embedding(const Tensor& ids, const Tensor& weight) {
  ShapeVector shape = ids.shape();
  shape.push_back(last(weight));
  Tensor y = make(shape);
  launch("embedding", {ids, weight}, {y}, [=] {
    const int64_t V = weight.shape()[0];
    check_index(msllm::embedding(ints(ids), floats(weight), floats(y), count(ids), V, last(weight)), ids, V,
                "embedding: id");
  });
  return y;
}

Tensor embedding_grad(const Tensor& ids, const Tensor& dy, int64_t V) {
  Tensor dweight = make({V, last(dy)});
  launch("embedding_grad", {ids, dy}, {dweight},
         [=] { msllm::embedding_grad(ints(ids), floats(dy), floats(dweight), count(ids), V, last(dy)); });
  return dweight;
}

// Rows of C numbers that may lie anywhere; a tensor whose last axis is not contiguous is copied first.
Tensor with_contiguous_rows(const Tensor& t) {
  if (t.stride().back() != 1) return t.contiguous();
  t.SetNeedContiguous(false);
  return t;
}

msllm::Rows rows_of(const Tensor& t) {
  const auto stride = t.stride();
  return {floats(t), stride[0], stride[1], stride[2]};
}

Tensor rotary(const Tensor& x, const Tensor& given_cos, const Tensor& given_sin, bool backward) {
  const Tensor in = with_contiguous_rows(x), cos = dense(given_cos), sin = dense(given_sin);
  Tensor y = like(x);
  launch("rotary", {in, cos, sin}, {y}, [=] {
    const auto& shape = in.shape();
    const msllm::Rows from = rows_of(in);
    const int64_t table_stride = cos.shape()[0] == 1 ? 0 : cos.shape()[1] * cos.shape()[2];
    msllm::rotary(from.data, from.batch_stride, from.token_stride, from.head_stride, floats(cos), floats(sin),
                  table_stride, floats(y), shape[0], shape[1], shape[2], shape[3], backward ? -1.0f : 1.0f);
  });
  return y;
}

void cache_write(const Tensor& cache, const Tensor& given, int64_t start) {
  require_dense(cache, "cache_write: cache");
  const Tensor fresh = dense(given);
  launch("cache_write", {cache, fresh}, {}, [=] {
    const auto &to = cache.shape(), &from = fresh.shape();
    msllm::cache_write(floats(cache), floats(fresh), from[0], to[1], from[1], from[2] * from[3], start);
  });
}

Tensors cross_entropy(const Tensor& logits, const Tensor& labels, int64_t ignore_index) {
  Tensor loss = make(labels.shape()), logsumexp = make(labels.shape());
  launch("cross_entropy", {logits, labels}, {loss, logsumexp}, [=] {
    const int64_t V = last(logits);
    check_index(msllm::cross_entropy(floats(logits), ints(labels), floats(loss), floats(logsumexp), count(labels), V,
                                     static_cast<int32_t>(ignore_index)),
                labels, V, "cross_entropy: label");
  });
  return {loss, logsumexp};
}

Tensor cross_entropy_grad(const Tensor& logits, const Tensor& labels, const Tensor& logsumexp, const Tensor& dloss,
                          int64_t ignore_index) {
  Tensor dlogits = like(logits);
  launch("cross_entropy_grad", {logits, labels, logsumexp, dloss}, {dlogits}, [=] {
    msllm::cross_entropy_grad(floats(logits), ints(labels), floats(logsumexp), floats(dloss), floats(dlogits),
                              count(labels), last(logits), static_cast<int32_t>(ignore_index));
  });
  return dlogits;
}

void adamw(const Tensors& params, const Tensors& given_grads, const Tensors& exp_avg, const Tensors& exp_avg_sq,
           const std::vector<double>& weight_decay, double lr, double beta1, double beta2, double eps, int64_t step,
           double grad_scale) {
  const Tensors grads = dense(given_grads);
  for (const Tensors* list : {&params, &exp_avg, &exp_avg_sq}) {
    for (const Tensor& t : *list) require_dense(t, "adamw: a parameter or moment");
  }
  Tensors inputs;
  for (const Tensors* list : {&params, &grads, &exp_avg, &exp_avg_sq}) {
    inputs.insert(inputs.end(), list->begin(), list->end());
  }
  launch("adamw", inputs, {}, [=] {
    std::vector<msllm::AdamWTensor> tensors;
    for (size_t i = 0; i < params.size(); ++i) {
      tensors.push_back({floats(params[i]), floats(grads[i]), floats(exp_avg[i]), floats(exp_avg_sq[i]),
                         count(params[i]), weight_decay[i]});
    }
    msllm::adamw(tensors, {lr, beta1, beta2, eps, grad_scale, step});
  });
}

Tensor sum_squares(const Tensors& tensors) {
  Tensor sum(mindspore::kNumberTypeFloat64, {1});
  launch("sum_squares", tensors, {sum}, [=] {
    std::vector<std::pair<const float*, int64_t>> parts;
    for (const Tensor& tensor : tensors) parts.emplace_back(floats(tensor), count(tensor));
    *sum.data_ptr<double>() = msllm::sum_squares(parts);
  });
  return sum;
}

struct AttentionOptions {
  double scale, dropout;
  bool causal;
  int64_t length;
  uint32_t seed, call;
};

// What attention and its gradient have in common: inputs that are there, and the shape they make.
class AttentionInputs {
 public:
  AttentionInputs(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& key_mask,
                  const Optional& row_start, const Optional& slopes, const AttentionOptions& options)
      : q_(with_contiguous_rows(q)),
        k_(with_contiguous_rows(k)),
        v_(with_contiguous_rows(v)),
        key_mask_(dense(key_mask)),
        row_start_(dense(row_start)),
        slopes_(dense(slopes)),
        options_(options) {}

  Tensors tensors(const Tensors& more) const {
    Tensors all = {q_, k_, v_};
    for (const Optional* optional : {&key_mask_, &row_start_, &slopes_}) {
      if (optional->has_value()) all.push_back(optional->value());
    }
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  msllm::AttentionShape shape() const {
    const auto &q = q_.shape(), &k = k_.shape();
    msllm::AttentionShape shape{q[0], q[1], k[1], q[2], k[2], q[3], options_.length,
                                static_cast<float>(options_.scale), options_.causal, nullptr, nullptr, nullptr, {}};
    if (key_mask_) shape.key_mask = ints(*key_mask_);
    if (row_start_) shape.row_start = ints(*row_start_);
    if (slopes_) shape.slopes = floats(*slopes_);
    if (options_.dropout > 0) shape.dropout = msllm::Dropout(options_.seed, options_.call, options_.dropout);
    return shape;
  }

  msllm::Rows q() const { return rows_of(q_); }
  msllm::Rows k() const { return rows_of(k_); }
  msllm::Rows v() const { return rows_of(v_); }

 private:
  Tensor q_, k_, v_;
  Optional key_mask_, row_start_, slopes_;
  AttentionOptions options_;
};

Tensors attention(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& key_mask,
                  const Optional& row_start, const Optional& slopes, const AttentionOptions& options) {
  const AttentionInputs inputs(q, k, v, key_mask, row_start, slopes, options);
  const auto& shape = q.shape();
  Tensor out = make(shape), logsumexp = make({shape[0], shape[2], shape[1]});
  launch("attention", inputs.tensors({}), {out, logsumexp}, [=] {
    msllm::attention(inputs.shape(), inputs.q(), inputs.k(), inputs.v(), floats(out), floats(logsumexp));
  });
  return {out, logsumexp};
}

Tensors attention_grad(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& key_mask,
                       const Optional& row_start, const Optional& slopes, const AttentionOptions& options,
                       const Tensor& out, const Tensor& logsumexp, const Tensor& given_dout) {
  const AttentionInputs inputs(q, k, v, key_mask, row_start, slopes, options);
  const Tensor dout = dense(given_dout);
  Tensor dq = like(q), dk = like(k), dv = like(v);
  launch("attention_grad", inputs.tensors({out, logsumexp, dout}), {dq, dk, dv}, [=] {
    msllm::attention_grad(inputs.shape(), inputs.q(), inputs.k(), inputs.v(), floats(out), floats(logsumexp),
                          floats(dout), floats(dq), floats(dk), floats(dv));
  });
  return {dq, dk, dv};
}

// Binds a function that returns kOutputs tensors, or works in place when kOutputs is 0, and takes views as they are.
template <int kOutputs, typename Result, typename... Args>
void bind_strided(py::module_& m, const char* name, Result (*function)(Args...)) {
  m.def(name, [function](const std::decay_t<Args>&... args) { return Runner::Call<kOutputs>(function, args...); });
}

// The same for a function that reads its tensors from end to end: views are copied first.
template <int kOutputs, typename Result, typename... Args>
void bind(py::module_& m, const char* name, Result (*function)(Args...)) {
  m.def(name, [function](const std::decay_t<Args>&... args) {
    const auto call = [function](const std::decay_t<Args>&... given) { return function(dense(given)...); };
    return Runner::Call<kOutputs>(call, args...);
  });
}

}  // namespace

PYBIND11_MODULE(MS_EXTENSION_NAME, m) {
  m.def("thread_count", &msllm::thread_count);
  m.def("set_thread_count", &msllm::set_thread_count);
  py::class_<AttentionOptions>(m, "AttentionOptions")
      .def(py::init([](double scale, double dropout, bool causal, int64_t length, uint32_t seed, uint32_t call) {
        return AttentionOptions{scale, dropout, causal, length, seed, call};
      }));
  m.def("load_gemm", [](const std::string& library) { return msllm::load_gemm(library.c_str()); });
  bind<1>(m, "matmul", matmul);
  bind<1>(m, "linear", linear);
  bind<1>(m, "gelu", gelu);
  bind<1>(m, "gelu_grad", gelu_grad);
  bind<1>(m, "swiglu", swiglu);
  bind<2>(m, "swiglu_grad", swiglu_grad);
  bind<1>(m, "dropout", dropout);
  bind<3>(m, "layer_norm", layer_norm);
  bind<3>(m, "layer_norm_grad", layer_norm_grad);
  bind<2>(m, "rms_norm", rms_norm);
  bind<2>(m, "rms_norm_grad", rms_norm_grad);
  bind_strided<0>(m, "add_bias", add_bias);
  bind<1>(m, "column_sum", column_sum);
  bind<1>(m, "embedding", embedding);
  bind<1>(m, "embedding_grad", embedding_grad);
  bind_strided<1>(m, "rotary", rotary);
  bind_strided<0>(m, "cache_write", cache_write);
  bind<2>(m, "cross_entropy", cross_entropy);
  bind<1>(m, "cross_entropy_grad", cross_entropy_grad);
  bind_strided<0>(m, "adamw", adamw);
  bind<1>(m, "sum_squares", sum_squares);
  bind_strided<2>(m, "attention", attention);
  bind_strided<3>(m, "attention_grad", attention_grad);
}
