// Runs the plain kernels without MindSpore and compares them with direct formulas: a check for other processors.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

namespace {

using Numbers = std::vector<float>;

Numbers numbers(int64_t count, unsigned seed) {
  Numbers x(count);
  for (float& value : x) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return x;
}

void expect(const char* what, double got, double want) {
  if (std::fabs(got - want) <= 2e-5 * (1.0 + std::fabs(want))) return;
  std::printf("%s: got %.8g, expected %.8g\n", what, got, want);
  std::exit(1);
}

void check_activations() {
  const Numbers x = numbers(1001, 1);
  Numbers y(x.size());
  msllm::plain::gelu(x.data(), y.data(), 1001, false);
  for (size_t i = 0; i < x.size(); ++i) expect("gelu", y[i], 0.5 * x[i] * std::erfc(-x[i] / std::sqrt(2.0)));
  msllm::plain::swiglu(x.data(), x.data(), y.data(), 1001);
  for (size_t i = 0; i < x.size(); ++i) expect("swiglu", y[i], x[i] * x[i] / (1.0 + std::exp(-x[i])));
}

void check_product() {
  constexpr int M = 13, N = 70, K = 300;
  const Numbers a = numbers(M * K, 7), b = numbers(N * K, 8);
  Numbers many(M * N), few(8 * N);
  msllm::plain::matmul(a.data(), b.data(), nullptr, many.data(), M, N, K, false, true);
  msllm::plain::linear_few(a.data(), {b.data(), nullptr, K, N}, nullptr, few.data(), 8);
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < N; ++j) {
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += static_cast<double>(a[i * K + k]) * b[j * K + k];
      expect("matmul", many[i * N + j], sum);
      if (i < 8) expect("linear_few", few[i * N + j], sum);
    }
  }
}

void check_loss() {
  const Numbers x = numbers(3 * 37, 2);
  const int32_t labels[] = {4, -100, 36};
  Numbers loss(3), total(3);
  msllm::plain::cross_entropy(x.data(), labels, loss.data(), total.data(), 3, 37, -100, 0.0f);
  for (int row = 0; row < 3; ++row) {
    double sum = 0;
    for (int i = 0; i < 37; ++i) sum += std::exp(x[row * 37 + i]);
    expect("cross_entropy", loss[row], labels[row] < 0 ? 0.0 : std::log(sum) - x[row * 37 + labels[row]]);
  }
}

// Attention's loss sum(out * dout), by the definition, in double.
double attention_loss(const Numbers& q, const Numbers& k, const Numbers& v, const Numbers& dout, int T, int C) {
  double loss = 0;
  for (int t = 0; t < T; ++t) {
    double sum = 0, value = 0;
    for (int s = 0; s <= t; ++s) {
      double score = 0, dot = 0;
      for (int c = 0; c < C; ++c) {
        score += static_cast<double>(q[t * C + c]) * k[s * C + c];
        dot += static_cast<double>(v[s * C + c]) * dout[t * C + c];
      }
      sum += std::exp(0.5 * score);
      value += std::exp(0.5 * score) * dot;
    }
    loss += value / sum;
  }
  return loss;
}

void check_attention(int threads) {
  constexpr int T = 131, C = 10;
  msllm::set_thread_count(threads);
  Numbers q = numbers(T * C, 3), k = numbers(T * C, 4), v = numbers(T * C, 5);
  const Numbers dout = numbers(T * C, 6);
  Numbers out(T * C), total(T), dq(T * C), dk(T * C), dv(T * C);
  const msllm::AttentionShape shape{1, T, T, 1, 1, C, T, 0.5f, true, nullptr, nullptr, nullptr, {}};
  const auto rows = [](const Numbers& x) { return msllm::Rows{x.data(), T * C, C, C}; };
  const auto writable = [](Numbers& x) { return msllm::MutableRows{x.data(), T * C, C, C}; };
  msllm::plain::attention(shape, rows(q), rows(k), rows(v), out.data(), total.data());
  double loss = 0;
  for (int i = 0; i < T * C; ++i) loss += static_cast<double>(out[i]) * dout[i];
  expect("attention", loss, attention_loss(q, k, v, dout, T, C));
  msllm::plain::attention_grad(shape, rows(q), rows(k), rows(v), out.data(), total.data(), dout.data(), writable(dq),
                               writable(dk), writable(dv));
  Numbers* inputs[] = {&q, &k, &v};
  const Numbers* grads[] = {&dq, &dk, &dv};
  for (int input = 0; input < 3; ++input) {
    for (int i = 0; i < T * C; i += 97) {
      float& x = (*inputs[input])[i];
      const float kept = x;
      x = kept + 0.0078125f;
      const double up = attention_loss(q, k, v, dout, T, C);
      x = kept - 0.0078125f;
      const double down = attention_loss(q, k, v, dout, T, C);
      x = kept;
      expect("attention gradient", (*grads[input])[i], (up - down) / 0.015625);
    }
  }
}

}  // namespace

int main() {
  check_activations();
  check_product();
  check_loss();
  check_attention(1);
  check_attention(3);
  std::puts("all right");
}
