// What the bindings share: a kernel as a MindSpore operator, and a tensor's numbers.
#pragma once

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "huge_pages.hpp"
#include "ms_extension/all.h"
#include "paths.hpp"

namespace msllm_bindings {

using Runner = ms::pynative::PyboostRunner;
using ms::Tensor;
using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;

constexpr size_t kLargeTensor = 65536;  // numbers

class Kernel : public Runner {
 public:
  Kernel(const char* name, std::function<void()> body) : Runner(name), body_(std::move(body)) {}
  void LaunchKernel() override { body_(); }

 private:
  std::function<void()> body_;
};

inline float* floats(const Tensor& t) { return t.data_ptr<float>(); }
inline const int32_t* ints(const Tensor& t) { return t.data_ptr<int32_t>(); }
inline int64_t count(const Tensor& t) { return static_cast<int64_t>(t.numel()); }
inline int64_t last(const Tensor& t) { return t.shape().back(); }
inline int64_t rows(const Tensor& t) { return last(t) == 0 ? 0 : count(t) / last(t); }
inline Tensor make(const ShapeVector& shape) { return Tensor(mindspore::kNumberTypeFloat32, shape); }
inline Tensor like(const Tensor& t) { return make(t.shape()); }

// A view's numbers lie apart: this copies them together. Other arguments pass through.
template <typename T>
const T& dense(const T& value) {
  return value;
}
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : t.contiguous(); }
inline Optional dense(const Optional& t) { return t ? Optional(dense(*t)) : t; }
inline Tensors dense(const Tensors& tensors) {
  Tensors all;
  for (const Tensor& t : tensors) all.push_back(dense(t));
  return all;
}

// What is changed in place cannot be copied first.
inline void require_dense(const Tensor& t, const char* what) {
  if (!t.is_contiguous()) throw std::invalid_argument(std::string(what) + " must be contiguous: it is changed in place");
}

// MindSpore gives every input and output memory, then calls body.
inline void launch(const char* name, const Tensors& inputs, const Tensors& outputs, std::function<void()> body) {
  const auto run = [body = std::move(body), outputs] {
    for (const Tensor& t : outputs) {
      if (t.numel() >= kLargeTensor) msllm::ask_for_huge_pages(t.GetDataPtr());
    }
    body();
  };
  std::make_shared<Kernel>(name, run)->Run(inputs, outputs);
}

inline ShapeVector without_last(const Tensor& t) { return {t.shape().begin(), t.shape().end() - 1}; }

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

// bindings_attention.cpp: adds attention, rotary and decode to the module.
void bind_attention(py::module_& m);

}  // namespace msllm_bindings
