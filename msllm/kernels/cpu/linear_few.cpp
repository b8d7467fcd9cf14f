// Products with few rows of x: the time goes into reading the weight, once and in order.
#include <algorithm>

#include "kernels.hpp"
#include "parallel.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

constexpr int kOuts = 4;  // weight rows at a time: streams from memory, and several arrive faster than one
// Rows of x at a time, so that the sums and what they are added up from fit into the registers.
#if defined(__AVX512F__)
constexpr int kGroup = 4;
#else
constexpr int kGroup = 2;
#endif

// Sets y (kRows, O) at columns o to o + kCount - 1. Every sum has one running vector, so its bits depend neither on the
// number of rows nor on that of columns.
template <int kRows, int kCount, bool kPrefetch>
void dots(const float* x, const LinearLayer& layer, int64_t o, const float* add, float* y) {
  const int64_t I = layer.I, whole = I / kLanes * kLanes;
  const float* w = layer.weight + o * I;
  Vec sums[kRows][kCount] = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    Vec weights[kCount];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      weights[j] = load(w + j * I + i);
      // The next rows, a row's length ahead: what the processor foresees by itself fills half of the memory's width.
      if (kPrefetch) __builtin_prefetch(w + (kCount + j) * I + i);
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      const Vec part = load(x + row * I + i);
#pragma GCC unroll 4
      for (int j = 0; j < kCount; ++j) sums[row][j] += part * weights[j];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int j = 0; j < kCount; ++j) {
      float sum = sum_lanes(sums[row][j]);
      for (int64_t i = whole; i < I; ++i) sum += x[row * I + i] * w[j * I + i];
      if (layer.bias != nullptr) sum += layer.bias[o + j];
      const int64_t at = row * layer.O + o + j;
      y[at] = add == nullptr ? sum : sum + add[at];
    }
  }
}

template <int kCount, bool kPrefetch>
void dots(int64_t rows, const float* x, const LinearLayer& layer, int64_t o, const float* add, float* y) {
  switch (rows) {
    case 1: return dots<1, kCount, kPrefetch>(x, layer, o, add, y);
    case 2: return dots<2, kCount, kPrefetch>(x, layer, o, add, y);
#if defined(__AVX512F__)
    case 3: return dots<3, kCount, kPrefetch>(x, layer, o, add, y);
    case 4: return dots<4, kCount, kPrefetch>(x, layer, o, add, y);
#endif
  }
}

}  // namespace

void linear_few_columns(const float* x, const LinearLayer& layer, int64_t begin, int64_t end, const float* add,
                        float* y, int64_t rows) {
  int64_t o = begin;
  while (o < end) {
    const bool four = o + kOuts <= end;
    // The first group of rows brings the weights into the cache, where the others find them.
    for (int64_t row = 0; row < rows; row += kGroup) {
      const int64_t group = std::min<int64_t>(kGroup, rows - row), at = row * layer.O;
      const auto run = !four ? &dots<1, false> : row == 0 ? &dots<kOuts, true> : &dots<kOuts, false>;
      run(group, x + row * layer.I, layer, o, add == nullptr ? nullptr : add + at, y + at);
    }
    o += four ? kOuts : 1;
  }
}

int64_t linear_few_chunk(const LinearLayer& layer) {
  const int64_t numbers = std::clamp<int64_t>(layer.O * layer.I / 16, 16384, 131072);
  return std::max<int64_t>(kOuts, numbers / std::max<int64_t>(layer.I, 1) / kOuts * kOuts);
}

void linear_few(const float* x, const LinearLayer& layer, const float* add, float* y, int64_t rows) {
  parallel_ranges(layer.O, linear_few_chunk(layer), [&](int64_t begin, int64_t end) {
    linear_few_columns(x, layer, begin, end, add, y, rows);
  });
}

}  // namespace MSLLM_PATH
}  // namespace msllm
