// The kernels as Python functions over MindSpore tensors. Shapes and types are checked by cpu.py before it calls.
#include "matmul.hpp"
#include "parallel.hpp"
#include "tensors.hpp"

namespace {

using namespace msllm_bindings;

void check_index(int64_t bad_row, const Tensor& ids, int64_t limit, const char* what) {
  if (bad_row < 0) return;
  throw std::out_of_range(std::string(what) + " " + std::to_string(ints(ids)[bad_row]) + " at position " +
                          std::to_string(bad_row) + " is outside [0, " + std::to_string(limit) + ")");
}

Tensor gelu(const Tensor& x, bool tanh_form) {
  Tensor y = like(x);
  launch("gelu", {x}, {y}, [=] { msllm::kernels().gelu(floats(x), floats(y), count(x), tanh_form); });
  return y;
}

Tensor gelu_grad(const Tensor& x, const Tensor& dy, bool tanh_form) {
  Tensor dx = like(x);
  launch("gelu_grad", {x, dy}, {dx},
         [=] { msllm::kernels().gelu_grad(floats(x), floats(dy), floats(dx), count(x), tanh_form); });
  return dx;
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  Tensor y = like(gate);
  launch("swiglu", {gate, up}, {y}, [=] { msllm::kernels().swiglu(floats(gate), floats(up), floats(y), count(gate)); });
  return y;
}

Tensors swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy) {
  Tensor dgate = like(gate), dup = like(gate);
  launch("swiglu_grad", {gate, up, dy}, {dgate, dup}, [=] {
    msllm::kernels().swiglu_grad(floats(gate), floats(up), floats(dy), floats(dgate), floats(dup), count(gate));
  });
  return {dgate, dup};
}

Tensor dropout(const Tensor& x, uint32_t seed, uint32_t call, double p) {
  Tensor y = like(x);
  const msllm::Dropout mask(seed, call, p);
  launch("dropout", {x}, {y}, [=] { msllm::kernels().dropout(floats(x), floats(y), rows(x), last(x), mask); });
  return y;
}

const float* floats_or_null(const Optional& t) { return t ? floats(*t) : nullptr; }

Tensors with(Tensors inputs, const Optional& more) {
  if (more) inputs.push_back(*more);
  return inputs;
}

// Returns x + add (or x, where there is no add), its norm, and per row the mean and the scale.
Tensors layer_norm(const Tensor& x, const Optional& add, const Tensor& weight, const Tensor& bias, double eps) {
  Tensor sum = add ? like(x) : x, y = like(x), mean = make(without_last(x)), scale = make(without_last(x));
  Tensors outputs = {y, mean, scale};
  if (add) outputs.insert(outputs.begin(), sum);
  launch("layer_norm", with({x, weight, bias}, add), outputs, [=] {
    msllm::kernels().layer_norm(floats(x), floats_or_null(add), floats(weight), floats(bias), floats(sum), floats(y),
                                floats(mean), floats(scale), rows(x), last(x), static_cast<float>(eps));
  });
  return outputs;
}

Tensors layer_norm_grad(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& scale,
                        const Optional& dsum, const Tensor& dy) {
  Tensor dx = like(x), dweight = like(weight), dbias = like(weight);
  launch("layer_norm_grad", with({x, weight, mean, scale, dy}, dsum), {dx, dweight, dbias}, [=] {
    msllm::kernels().layer_norm_grad(floats(x), floats(weight), floats(mean), floats(scale), floats_or_null(dsum),
                                     floats(dy), floats(dx), floats(dweight), floats(dbias), rows(x), last(x));
  });
  return {dx, dweight, dbias};
}

Tensors rms_norm(const Tensor& x, const Optional& add, const Tensor& weight, double eps) {
  Tensor sum = add ? like(x) : x, y = like(x), scale = make(without_last(x));
  Tensors outputs = {y, scale};
  if (add) outputs.insert(outputs.begin(), sum);
  launch("rms_norm", with({x, weight}, add), outputs, [=] {
    msllm::kernels().rms_norm(floats(x), floats_or_null(add), floats(weight), floats(sum), floats(y), floats(scale),
                              rows(x), last(x), static_cast<float>(eps));
  });
  return outputs;
}

Tensors rms_norm_grad(const Tensor& x, const Tensor& weight, const Tensor& scale, const Optional& dsum,
                      const Tensor& dy) {
  Tensor dx = like(x), dweight = like(weight);
  launch("rms_norm_grad", with({x, weight, scale, dy}, dsum), {dx, dweight}, [=] {
    msllm::kernels().rms_norm_grad(floats(x), floats(weight), floats(scale), floats_or_null(dsum), floats(dy),
                                   floats(dx), floats(dweight), rows(x), last(x));
  });
  return {dx, dweight};
}

// x (..., I) to (..., O): the shape of what a weight (O, I) makes of x, or of what its transpose makes of y.
ShapeVector with_last(const Tensor& t, int64_t width) {
  ShapeVector shape = without_last(t);
  shape.push_back(width);
  return shape;
}

// y = x w^T + bias.
void multiply_by_weight(const Tensor& x, const Tensor& weight, const float* bias, const Tensor& y) {
  const int64_t n = rows(y), I = last(x), O = last(y);
  if (n <= msllm::kFewRows) {
    return msllm::kernels().linear_few(floats(x), {floats(weight), bias, I, O}, nullptr, floats(y), n);
  }
  msllm::kernels().matmul(floats(x), floats(weight), bias, floats(y), n, O, I, false, true);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Optional& bias) {
  Tensor y = make(with_last(x, weight.shape()[0]));
  launch("linear", with({x, weight}, bias), {y}, [=] { multiply_by_weight(x, weight, floats_or_null(bias), y); });
  return y;
}

// dy (..., O) to dx (..., I).
Tensor linear_grad_input(const Tensor& dy, const Tensor& weight) {
  Tensor dx = make(with_last(dy, last(weight)));
  launch("linear_grad_input", {dy, weight}, {dx}, [=] {
    msllm::kernels().matmul(floats(dy), floats(weight), nullptr, floats(dx), rows(dy), last(dx), last(dy), false, false);
  });
  return dx;
}

// dy (..., O) and x (..., I) to dweight (O, I).
Tensor linear_grad_weight(const Tensor& dy, const Tensor& x) {
  Tensor dweight = make({last(dy), last(x)});
  launch("linear_grad_weight", {dy, x}, {dweight}, [=] {
    msllm::kernels().matmul(floats(dy), floats(x), nullptr, floats(dweight), last(dy), last(x), rows(x), true, false);
  });
  return dweight;
}

// Returns GELU(x w^T + bias), and x w^T for the gradient.
Tensors linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, bool tanh_form) {
  Tensor y = make(with_last(x, weight.shape()[0])), product = like(y);
  launch("linear_gelu", {x, weight, bias}, {y, product}, [=] {
    multiply_by_weight(x, weight, nullptr, product);
    msllm::kernels().bias_gelu(floats(product), floats(bias), floats(y), rows(y), last(y), tanh_form);
  });
  return {y, product};
}

// The gradients of x w^T and of the bias.
Tensors bias_gelu_grad(const Tensor& product, const Tensor& bias, const Tensor& dy, bool tanh_form) {
  Tensor dproduct = like(product), dbias = like(bias);
  launch("bias_gelu_grad", {product, bias, dy}, {dproduct, dbias}, [=] {
    msllm::kernels().bias_gelu_grad(floats(product), floats(bias), floats(dy), floats(dproduct), floats(dbias),
                                    rows(dy), last(dy), tanh_form);
  });
  return {dproduct, dbias};
}

Tensor column_sum(const Tensor& x) {
  Tensor sum = make({last(x)});
  launch("column_sum", {x}, {sum}, [=] { msllm::kernels().column_sum(floats(x), floats(sum), rows(x), last(x)); });
  return sum;
}

// The sum of rows of several tables. The first ids give the shape (...); others may lack its first axes and repeat.
Tensor embedding(const Tensors& ids, const Tensors& weights) {
  ShapeVector shape = ids[0].shape();
  shape.push_back(last(weights[0]));
  Tensor y = make(shape);
  Tensors inputs = ids;
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  launch("embedding", inputs, {y}, [=] {
    for (size_t i = 0; i < ids.size(); ++i) {
      const int64_t V = weights[i].shape()[0];
      check_index(msllm::kernels().embedding(ints(ids[i]), count(ids[i]), floats(weights[i]), i > 0, floats(y),
                                             rows(y), V, last(y)),
                  ids[i], V, "embedding: id");
    }
  });
  return y;
}

Tensor embedding_grad(const Tensor& ids, const Tensor& dy, int64_t V) {
  Tensor dweight = make({V, last(dy)});
  launch("embedding_grad", {ids, dy}, {dweight}, [=] {
    msllm::kernels().fill_zero(floats(dweight), count(dweight));
    msllm::kernels().embedding_grad(ints(ids), count(ids), floats(dy), floats(dweight), rows(dy), last(dy));
  });
  return dweight;
}

// Adds to what dweight holds already.
void embedding_grad_add(const Tensor& given_ids, const Tensor& given_dy, const Tensor& dweight) {
  require_dense(dweight, "embedding_grad_add: dweight");
  const Tensor ids = dense(given_ids), dy = dense(given_dy);
  launch("embedding_grad_add", {ids, dy, dweight}, {}, [=] {
    msllm::kernels().embedding_grad(ints(ids), count(ids), floats(dy), floats(dweight), rows(dy), last(dy));
  });
}

Tensors cross_entropy(const Tensor& logits, const Tensor& labels, int64_t ignore_index, double smoothing) {
  Tensor loss = make(labels.shape()), logsumexp = make(labels.shape());
  launch("cross_entropy", {logits, labels}, {loss, logsumexp}, [=] {
    const int64_t V = last(logits);
    check_index(msllm::kernels().cross_entropy(floats(logits), ints(labels), floats(loss), floats(logsumexp), count(labels), V,
                                     static_cast<int32_t>(ignore_index), static_cast<float>(smoothing)),
                labels, V, "cross_entropy: label");
  });
  return {loss, logsumexp};
}

Tensor cross_entropy_grad(const Tensor& logits, const Tensor& labels, const Tensor& logsumexp, const Tensor& dloss,
                          int64_t ignore_index, double smoothing) {
  Tensor dlogits = like(logits);
  launch("cross_entropy_grad", {logits, labels, logsumexp, dloss}, {dlogits}, [=] {
    msllm::kernels().cross_entropy_grad(floats(logits), ints(labels), floats(logsumexp), floats(dloss), floats(dlogits),
                              count(labels), last(logits), static_cast<int32_t>(ignore_index), static_cast<float>(smoothing));
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
    msllm::kernels().adamw(tensors, {lr, beta1, beta2, eps, grad_scale, step});
  });
}

Tensor sum_squares(const Tensors& tensors) {
  Tensor sum(mindspore::kNumberTypeFloat64, {1});
  launch("sum_squares", tensors, {sum}, [=] {
    std::vector<std::pair<const float*, int64_t>> parts;
    for (const Tensor& tensor : tensors) parts.emplace_back(floats(tensor), count(tensor));
    *sum.data_ptr<double>() = msllm::kernels().sum_squares(parts);
  });
  return sum;
}

}  // namespace

PYBIND11_MODULE(MS_EXTENSION_NAME, m) {
  m.def("thread_count", &msllm::thread_count);
  m.def("set_thread_count", &msllm::set_thread_count);
  m.def("path_names", [] {
    const auto names = msllm::path_names();
    return std::vector<std::string>(names.begin(), names.end());
  });
  m.def("use_path", [](const std::string& name) { return msllm::use_path(name.c_str()); });
  m.def("path_in_use", &msllm::path_in_use);
  m.def("load_gemm", [](const std::string& library) { return msllm::load_gemm(library.c_str()); });
  bind<1>(m, "linear", linear);
  bind<1>(m, "linear_grad_input", linear_grad_input);
  bind<1>(m, "linear_grad_weight", linear_grad_weight);
  bind<2>(m, "linear_gelu", linear_gelu);
  bind<2>(m, "bias_gelu_grad", bias_gelu_grad);
  bind<1>(m, "gelu", gelu);
  bind<1>(m, "gelu_grad", gelu_grad);
  bind<1>(m, "swiglu", swiglu);
  bind<2>(m, "swiglu_grad", swiglu_grad);
  bind<1>(m, "dropout", dropout);
  bind<3>(m, "layer_norm", layer_norm);
  bind<4>(m, "add_layer_norm", layer_norm);
  bind<3>(m, "layer_norm_grad", layer_norm_grad);
  bind<2>(m, "rms_norm", rms_norm);
  bind<3>(m, "add_rms_norm", rms_norm);
  bind<2>(m, "rms_norm_grad", rms_norm_grad);
  bind<1>(m, "column_sum", column_sum);
  bind<1>(m, "embedding", embedding);
  bind<1>(m, "embedding_grad", embedding_grad);
  bind_strided<0>(m, "embedding_grad_add", embedding_grad_add);
  bind<2>(m, "cross_entropy", cross_entropy);
  bind<1>(m, "cross_entropy_grad", cross_entropy_grad);
  bind_strided<0>(m, "adamw", adamw);
  bind<1>(m, "sum_squares", sum_squares);
  bind_attention(m);
}
