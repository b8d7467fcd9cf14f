#include <algorithm>
#include <cmath>

#include "kernels.hpp"
#include "parallel.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

constexpr int64_t kChunk = 16384;

// Calls body(tensor index, begin, end, chunk number) over all tensors' elements, in parallel.
template <typename Body>
int64_t over_tensors(const std::vector<int64_t>& counts, Body&& body) {
  struct Piece {
    int64_t tensor, begin;
  };
  std::vector<Piece> pieces;
  for (size_t i = 0; i < counts.size(); ++i) {
    for (int64_t begin = 0; begin < counts[i]; begin += kChunk) pieces.push_back({static_cast<int64_t>(i), begin});
  }
  parallel_chunks(static_cast<int64_t>(pieces.size()), [&](int64_t chunk) {
    const Piece& piece = pieces[chunk];
    body(piece.tensor, piece.begin, std::min(counts[piece.tensor], piece.begin + kChunk), chunk);
  });
  return static_cast<int64_t>(pieces.size());
}

}  // namespace

void adamw(const std::vector<AdamWTensor>& tensors, const AdamWStep& step) {
  const double correction1 = 1.0 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = std::sqrt(1.0 - std::pow(step.beta2, static_cast<double>(step.step)));
  const float b1 = static_cast<float>(step.beta1), b2 = static_cast<float>(step.beta2);
  const float c1 = static_cast<float>(1.0 - step.beta1), c2 = static_cast<float>(1.0 - step.beta2);
  const float rate = static_cast<float>(step.lr / correction1), unbias = static_cast<float>(1.0 / correction2);
  const float eps = static_cast<float>(step.eps), grad_scale = static_cast<float>(step.grad_scale);
  std::vector<int64_t> counts;
  for (const AdamWTensor& tensor : tensors) counts.push_back(tensor.count);
  over_tensors(counts, [&](int64_t index, int64_t begin, int64_t end, int64_t) {
    const AdamWTensor& tensor = tensors[index];
    const float decay = static_cast<float>(1.0 - step.lr * tensor.weight_decay);
    float *p = tensor.param, *m = tensor.exp_avg, *v = tensor.exp_avg_sq;
    const float* grad = tensor.grad;
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = grad[i] * grad_scale;
      const float mean = b1 * m[i] + c1 * g;
      const float square = b2 * v[i] + c2 * g * g;
      m[i] = mean;
      v[i] = square;
      p[i] = p[i] * decay - rate * mean / (std::sqrt(square) * unbias + eps);
    }
  });
}

double sum_squares(const std::vector<std::pair<const float*, int64_t>>& tensors) {
  std::vector<int64_t> counts;
  int64_t chunks = 0;
  for (const auto& tensor : tensors) {
    counts.push_back(tensor.second);
    chunks += (tensor.second + kChunk - 1) / kChunk;
  }
  std::vector<double> partials(static_cast<size_t>(chunks), 0.0);
  over_tensors(counts, [&](int64_t index, int64_t begin, int64_t end, int64_t chunk) {
    const float* x = tensors[index].first;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += static_cast<double>(x[i]) * x[i];
    partials[chunk] = sum;
  });
  double sum = 0;
  for (const double part : partials) sum += part;
  return sum;
}

}  // namespace MSLLM_PATH
}  // namespace msllm
