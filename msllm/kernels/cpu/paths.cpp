#include "paths.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "matmul.hpp"

// MSLLM_PATHS, given by the build, lists the compiled paths as PATH(plain) PATH(avx2) and so on.
namespace msllm {

#define PATH(name)             \
  namespace name {             \
  extern const Kernels table;  \
  }
MSLLM_PATHS
#undef PATH

namespace {

// The tile unit for large products; small ones as in the widest path.
void matmul_by_size(const float* a, const float* b, const float* bias, float* c, int64_t M, int64_t N, int64_t K,
                    bool transpose_a, bool transpose_b);

constexpr int64_t kNarrow = 16;

struct Path {
  const char* name;
  Kernels kernels;
};

const std::vector<Path>& paths() {
  static const std::vector<Path> all = [] {
    std::vector<Path> found = {
#define PATH(name) {#name, name::table},
        MSLLM_PATHS
#undef PATH
    };
    if (amx_usable()) {
      found.push_back({"amx", found.back().kernels});
      found.back().kernels.matmul = &matmul_by_size;
    }
    return found;
  }();
  return all;
}

void matmul_by_size(const float* a, const float* b, const float* bias, float* c, int64_t M, int64_t N, int64_t K,
                    bool transpose_a, bool transpose_b) {
  static const auto small = paths()[paths().size() - 2].kernels.matmul;
  // A narrow operand, an adapter's say, would fill its tiles with zeros.
  const bool narrow = std::min({M, N, K}) < kNarrow || M * N * K < kLeastTileWork;
  (narrow ? small : &matmul_amx)(a, b, bias, c, M, N, K, transpose_a, transpose_b);
}

std::atomic<const Path*>& current() {
  static std::atomic<const Path*> path = &paths().back();
  return path;
}

}  // namespace

std::vector<const char*> path_names() {
  std::vector<const char*> names;
  for (const Path& path : paths()) names.push_back(path.name);
  return names;
}

bool use_path(const char* name) {
  for (const Path& path : paths()) {
    if (std::strcmp(path.name, name) == 0) {
      current() = &path;
      return true;
    }
  }
  return false;
}

const char* path_in_use() { return current().load()->name; }

const Kernels& kernels() { return current().load(std::memory_order_relaxed)->kernels; }

}  // namespace msllm
