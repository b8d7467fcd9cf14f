#include "huge_pages.hpp"

#include <sys/mman.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <mutex>

namespace msllm {
namespace {

constexpr uintptr_t kLeast = uintptr_t{64} << 20;  // MindSpore's pool takes a gigabyte at a time

struct Range {
  uintptr_t begin = 0, end = 0;
  bool anonymous = false;
};

// The mapping of this process that holds the address; the address alone where the system does not tell.
Range mapping_of(uintptr_t address) {
  Range found = {address, address + 1, false};  // known, in any case: it is not looked up again
  FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) return found;
  char line[512];
  while (std::fgets(line, sizeof(line), maps) != nullptr) {
    uintptr_t begin, end, inode;
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %" SCNuPTR, &begin, &end, &inode) != 3) continue;
    if (begin <= address && address < end) {
      found = {begin, end, inode == 0};
      break;
    }
  }
  std::fclose(maps);
  return found;
}

}  // namespace

void ask_for_huge_pages(const void* pointer) {
  static std::mutex mutex;
  static Range known[64];  // a ring: mappings that were looked at last
  static int next = 0;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Range& range : known) {
    if (range.begin <= address && address < range.end) return;
  }
  const Range range = mapping_of(address);
  if (range.anonymous && range.end - range.begin >= kLeast) {
    madvise(reinterpret_cast<void*>(range.begin), range.end - range.begin, MADV_HUGEPAGE);
  }
  known[next++ % 64] = range;
}

}  // namespace msllm
