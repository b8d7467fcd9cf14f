#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "parallel.hpp"

namespace msllm {
namespace MSLLM_PATH {

void add_bias(float* y, const float* bias, int64_t n, int64_t D) {
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* out = y + row * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) out[i] += bias[i];
    }
  });
}

void column_sum(const float* x, float* sum, int64_t n, int64_t D) {
  constexpr int64_t kColumns = 64;  // stay in registers while the rows go by
  const auto add_columns = [=](int64_t begin, int64_t end) {
    if (end - begin == kColumns) {
      float total[kColumns] = {};
      for (int64_t row = 0; row < n; ++row) {
        const float* in = x + row * D + begin;
#pragma omp simd
        for (int64_t i = 0; i < kColumns; ++i) total[i] += in[i];
      }
      std::copy_n(total, kColumns, sum + begin);
    } else {
      std::fill(sum + begin, sum + end, 0.0f);
      for (int64_t row = 0; row < n; ++row) {
        const float* in = x + row * D;
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) sum[i] += in[i];
      }
    }
  };
  if (n * D <= 16384) {
    for (int64_t begin = 0; begin < D; begin += kColumns) add_columns(begin, std::min(D, begin + kColumns));
  } else {
    parallel_ranges(D, kColumns, add_columns);
  }
}

void fill_zero(float* x, int64_t count) {
  parallel_ranges(count, 1 << 18, [=](int64_t begin, int64_t end) { std::fill(x + begin, x + end, 0.0f); });
}

int64_t embedding(const int32_t* ids, int64_t count, const float* weight, bool add, float* y, int64_t n, int64_t V,
                  int64_t D) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= V) return i;
  }
  parallel_ranges(n, rows_per_chunk(D), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = weight + ids[row % count] * D;
      float* out = y + row * D;
      if (add) {
#pragma omp simd
        for (int64_t i = 0; i < D; ++i) out[i] += in[i];
      } else {
        std::copy_n(in, D, out);
      }
    }
  });
  return -1;
}

void embedding_grad(const int32_t* ids, int64_t count, const float* dy, float* dweight, int64_t n, int64_t D) {
  // Each chunk owns some columns and takes the tokens in order: rows that repeat are added in a fixed order.
  parallel_ranges(D, 128, [=](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < n; ++row) {
      const float* in = dy + row * D;
      float* out = dweight + ids[row % count] * D;
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) out[i] += in[i];
    }
  });
}

void rotary(const float* x, int64_t batch_stride, int64_t token_stride, int64_t head_stride, const float* cos,
            const float* sin, int64_t table_batch_stride, float* y, int64_t B, int64_t T, int64_t H, int64_t C,
            float sign) {
  const int64_t half = C / 2;
  parallel_ranges(B * T, rows_per_chunk(H * C), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / T, t = row % T;
      const float* c = cos + b * table_batch_stride + t * half;
      const float* s = sin + b * table_batch_stride + t * half;
      for (int64_t h = 0; h < H; ++h) {
        const float* in = x + b * batch_stride + t * token_stride + h * head_stride;
        float* out = y + (row * H + h) * C;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const float low = in[i], high = in[i + half], turn = sign * s[i];
          out[i] = low * c[i] - high * turn;
          out[i + half] = high * c[i] + low * turn;
        }
      }
    }
  });
}

void rotary_angles(const int32_t* positions, const float* frequencies, float* cos, float* sin, int64_t count,
                   int64_t R) {
  parallel_ranges(count, 1 + 1024 / std::max<int64_t>(R, 1), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin * R; i < end * R; ++i) {
      const float angle = static_cast<float>(positions[i / R]) * frequencies[i % R];
      cos[i] = std::cos(angle);
      sin[i] = std::sin(angle);
    }
  });
}

void cache_write(float* cache, Rows fresh, int64_t B, int64_t S, int64_t T, int64_t K, int64_t C, int64_t start) {
  parallel_ranges(B * T, rows_per_chunk(K * C), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* to = cache + (row / T * S + start + row % T) * K * C;
      for (int64_t h = 0; h < K; ++h) std::copy_n(fresh.at(row / T, row % T, h), C, to + h * C);
    }
  });
}

}  // namespace MSLLM_PATH
}  // namespace msllm
