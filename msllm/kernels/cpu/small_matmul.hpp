// Products of small matrices that live in the cache: c (+)= a b, the one loop nest of attention's five products.
#pragma once

#include "vector_math.hpp"

namespace msllm {
namespace MSLLM_PATH {

struct Matrix {  // element (i, j) is at data[i * row_stride + j * column_stride]
  const float* data;
  int64_t row_stride, column_stride;
};

// Rows and vectors of a block of c, chosen so that the block stays in registers.
constexpr int kBlockRows = 6;
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int kBlockVecs = 2;
#else
constexpr int kBlockVecs = 4;
#endif

template <int kRows, int kVecs>
inline void multiply_block(Matrix a, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t depth,
                           bool accumulate) {
  Vec sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) sum[i][j] = accumulate ? load(c + i * c_stride + j * kLanes) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) right[j] = load(b + k * b_stride + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec left = splat(a.data[i * a.row_stride + k * a.column_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) store(c + i * c_stride + j * kLanes, sum[i][j]);
  }
}

template <int kVecs>
inline void multiply_columns(Matrix a, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t rows,
                             int64_t depth, bool accumulate) {
  int64_t i = 0;
  const auto from = [&](int64_t row) { return Matrix{a.data + row * a.row_stride, a.row_stride, a.column_stride}; };
  for (; i + kBlockRows <= rows; i += kBlockRows) {
    multiply_block<kBlockRows, kVecs>(from(i), b, b_stride, c + i * c_stride, c_stride, depth, accumulate);
  }
  for (; i + 2 <= rows; i += 2) {
    multiply_block<2, kVecs>(from(i), b, b_stride, c + i * c_stride, c_stride, depth, accumulate);
  }
  if (i < rows) multiply_block<1, kVecs>(from(i), b, b_stride, c + i * c_stride, c_stride, depth, accumulate);
}

// c (rows x columns) = or += a (rows x depth) b (depth x columns). b and c have rows of contiguous numbers; columns is
// a multiple of kLanes.
inline void multiply(Matrix a, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t rows,
                     int64_t columns, int64_t depth, bool accumulate) {
  int64_t j = 0;
  for (; j + kBlockVecs * kLanes <= columns; j += kBlockVecs * kLanes) {
    multiply_columns<kBlockVecs>(a, b + j, b_stride, c + j, c_stride, rows, depth, accumulate);
  }
  for (; j < columns; j += kLanes) {
    multiply_columns<1>(a, b + j, b_stride, c + j, c_stride, rows, depth, accumulate);
  }
}

}  // namespace MSLLM_PATH
}  // namespace msllm
