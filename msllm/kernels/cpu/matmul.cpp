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

// Four running sums hide the latency of the additions; b streams in from memory once, in order.
float dot(const float* a, const float* b, int64_t n) {
  Vec sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[j] += load(a + i + j * kLanes) * load(b + i + j * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) sum[0] += load(a + i) * load(b + i);
  float total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// Numbers of the weight in a chunk: long enough that the processor's prefetching settles in.
constexpr int64_t kStream = 65536;

}  // namespace

bool load_gemm(const char* library) {
  sgemm = nullptr;
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
  parallel_ranges(O, I < kStream ? kStream / (I > 0 ? I : 1) : 1, [=](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const float start = bias == nullptr ? 0.0f : bias[o];
      for (int64_t row = 0; row < rows; ++row) y[row * O + o] = start + dot(x + row * I, w + o * I, I);
    }
  });
}

}  // namespace msllm
