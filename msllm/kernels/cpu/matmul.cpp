// Matrix products of every path: oneDNN's where MindSpore brings it, or else our own.
#include <algorithm>
#include <memory>

#include "kernels.hpp"
#include "matmul.hpp"
#include "parallel.hpp"
#include "small_matmul.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

constexpr int64_t kRows = 96, kColumns = 64, kDepth = 256;  // of a block; a packed block of b has 64 KB

// Copies b[k0 : k0 + depth, j0 : j0 + columns] to rows of kColumns numbers; what is left over is zero.
void pack(Matrix b, int64_t k0, int64_t depth, int64_t j0, int64_t columns, float* to) {
  for (int64_t k = 0; k < depth; ++k) {
    const float* from = b.data + (k0 + k) * b.row_stride + j0 * b.column_stride;
    float* row = to + k * kColumns;
    for (int64_t j = 0; j < columns; ++j) row[j] = from[j * b.column_stride];
    std::fill(row + columns, row + kColumns, 0.0f);
  }
}

void multiply_in_blocks(Matrix a, Matrix b, float* c, int64_t M, int64_t N, int64_t K) {
  const int64_t down = (M + kRows - 1) / kRows, across = (N + kColumns - 1) / kColumns;
  parallel_chunks(down * across, [=](int64_t chunk) {
    const int64_t i0 = chunk / across * kRows, rows = std::min(kRows, M - i0);
    const int64_t j0 = chunk % across * kColumns, columns = std::min(kColumns, N - j0);
    const std::unique_ptr<float[]> memory(new float[kDepth * kColumns + kRows * kColumns]());
    float *packed = memory.get(), *sums = packed + kDepth * kColumns;
    for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
      const int64_t depth = std::min(kDepth, K - k0);
      pack(b, k0, depth, j0, columns, packed);
      const float* corner = a.data + i0 * a.row_stride + k0 * a.column_stride;
      multiply({corner, a.row_stride, a.column_stride}, packed, kColumns, sums, kColumns, rows, kColumns, depth, true);
    }
    for (int64_t i = 0; i < rows; ++i) std::copy_n(sums + i * kColumns, columns, c + (i0 + i) * N + j0);
  });
}

}  // namespace

void matmul(const float* a, const float* b, const float* bias, float* c, int64_t M, int64_t N, int64_t K,
            bool transpose_a, bool transpose_b) {
  if (gemm_loaded()) {
    matmul_onednn(a, b, c, M, N, K, transpose_a, transpose_b);
  } else {
    multiply_in_blocks(transpose_a ? Matrix{a, 1, M} : Matrix{a, K, 1}, transpose_b ? Matrix{b, 1, K} : Matrix{b, N, 1},
                       c, M, N, K);
  }
  if (bias != nullptr) add_bias(c, bias, M, N);
}

}  // namespace MSLLM_PATH
}  // namespace msllm
