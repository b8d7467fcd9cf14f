// Matrix products that are the same for all paths: the sgemm of the oneDNN library that MindSpore brings, on this
// pool's threads, and Intel's tile unit.
#pragma once

#include <cstdint>

namespace msllm {

// Finds sgemm in a shared library; false where there is none.
bool load_gemm(const char* library);

// Whether it has been found. Without, every path multiplies by itself (matmul.cpp).
bool gemm_loaded();

// As kernels.hpp says of matmul, without a bias; only where gemm_loaded().
void matmul_onednn(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K, bool transpose_a,
                   bool transpose_b);

// Multiplications below which packing the tiles takes longer than it saves.
constexpr int64_t kLeastTileWork = 1 << 24;

// Whether this build and this processor can do matmul_amx. The first call asks the system for the tile unit.
bool amx_usable();

// With a bias on the tile unit, wherever it is usable; for products of at least kLeastTileWork multiplications.
void matmul_amx(const float* a, const float* b, const float* bias, float* c, int64_t M, int64_t N, int64_t K,
                bool transpose_a, bool transpose_b);

}  // namespace msllm
