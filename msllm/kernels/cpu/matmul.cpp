#include "matmul.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "parallel.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace {

// What oneDNN asks of a thread pool (dnnl::threadpool_interop::threadpool_iface). Releases differ in whether a wait()
// stands before or after get_flags(): both take nothing, and 0 means "parallel_for has finished when it returns".
class OneDnnPool {
 public:
  virtual int get_num_threads() const { return thread_count(); }
  virtual bool get_in_parallel() const { return inside_chunk(); }
  virtual void parallel_for(int n, const std::function<void(int, int)>& body) {
    parallel_chunks(n, [&](int64_t i) { body(static_cast<int>(i), n); });
  }
  virtual uint64_t get_flags() const { return 0; }
  virtual uint64_t wait() { return 0; }
  virtual ~OneDnnPool() = default;
};

using Sgemm = int (*)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                      float*, int64_t, void*);
Sgemm sgemm = nullptr;

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Four outputs at a time: four rows of w stream in while x is read once.
void four_dots(const float* x, const float* w, int64_t stride, int64_t n, float* y) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  const float *w1 = w + stride, *w2 = w1 + stride, *w3 = w2 + stride;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i];
    s0 += v * w[i];
    s1 += v * w1[i];
    s2 += v * w2[i];
    s3 += v * w3[i];
  }
  y[0] = s0;
  y[1] = s1;
  y[2] = s2;
  y[3] = s3;
}

}  // namespace

bool load_gemm(const char* library) {
  if (void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL)) {
    sgemm = reinterpret_cast<Sgemm>(dlsym(handle, "dnnl_threadpool_interop_sgemm"));
  }
  return sgemm != nullptr;
}

void matmul(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K, bool transpose_a,
            bool transpose_b) {
  if (M == 0 || N == 0) return;
  if (K == 0) {
    std::fill(c, c + M * N, 0.0f);
    return;
  }
  static OneDnnPool pool;
  const int status = sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', M, N, K, 1.0f, a, transpose_a ? M : K, b,
                           transpose_b ? K : N, 0.0f, c, N, &pool);
  if (status != 0) throw std::runtime_error("matmul: oneDNN refused the product");
}

void linear_few(const float* x, const float* w, const float* bias, float* y, int64_t rows, int64_t I, int64_t O) {
  const int64_t size = (rows_per_chunk(I) + 3) / 4 * 4;  // a multiple of four keeps the blocks together
  parallel_ranges(O, size, [=](int64_t begin, int64_t end) {
    int64_t o = begin;
    for (; o + 4 <= end; o += 4) {
      for (int64_t row = 0; row < rows; ++row) four_dots(x + row * I, w + o * I, I, I, y + row * O + o);
    }
    for (; o < end; ++o) {
      for (int64_t row = 0; row < rows; ++row) y[row * O + o] = dot(x + row * I, w + o * I, I);
    }
    if (bias == nullptr) return;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = begin; i < end; ++i) y[row * O + i] += bias[i];
    }
  });
}

}  // namespace msllm
