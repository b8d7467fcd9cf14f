#include "matmul.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <thread>

#include "parallel.hpp"

namespace msllm {
namespace {

// What oneDNN asks of a thread pool (dnnl::threadpool_interop::threadpool_iface). Releases differ in whether a wait()
// stands before or after get_flags(): both take nothing, and 0 means "parallel_for has finished when it returns".
class OneDnnPool {
 public:
  // Always the processors of this machine: on AVX2, oneDNN's pieces, and with them the last bits of the results, depend
  // on the number that it is told. The pieces are dealt out to as many threads as there are.
  virtual int get_num_threads() const {
    static const int processors = std::max(1u, std::thread::hardware_concurrency());
    return processors;
  }
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

}  // namespace

bool load_gemm(const char* library) {
  sgemm = nullptr;
  if (void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL)) {
    sgemm = reinterpret_cast<Sgemm>(dlsym(handle, "dnnl_threadpool_interop_sgemm"));
  }
  return sgemm != nullptr;
}

bool gemm_loaded() { return sgemm != nullptr; }

void matmul_onednn(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K, bool transpose_a,
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

}  // namespace msllm
