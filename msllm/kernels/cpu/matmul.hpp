// Matrix products: the sgemm of the oneDNN library that MindSpore brings, on this pool's threads.
#pragma once

#include <cstdint>

namespace msllm {

// Finds sgemm in a shared library; false where there is none. Until it has been found, only linear_few works.
bool load_gemm(const char* library);

// c (M, N) = a b, rows contiguous; a is (M, K), or (K, M) when transpose_a, and b is (K, N), or (N, K).
void matmul(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K, bool transpose_a,
            bool transpose_b);

// Rows of x up to which linear_few is faster than sgemm: it reads the weight once, in order.
constexpr int64_t kFewRows = 8;

// y (rows, O) = x (rows, I) w^T + bias, w (O, I), for at most kFewRows rows; bias may be null.
void linear_few(const float* x, const float* w, const float* bias, float* y, int64_t rows, int64_t I, int64_t O);

}  // namespace msllm
