// Matrix products on the tile unit (AMX) of newer Intel processors, as exact as in float32.
//
// A float32 has 24 significant bits, a bfloat16 has 8, so x = x1 + x2 + x3 holds exactly with three bfloat16. Of the
// nine products the six with i + j <= 4 are taken; the other three are below 2^-25 of |a b|, less than one float32
// rounding. Sums are float32. (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype
// for higher-precision computations".) An infinity becomes NaN, as it minus itself is NaN; numbers below 1e-33 lose
// their last bits.
#include "matmul.hpp"

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)

#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "parallel.hpp"

namespace msllm {
namespace {

constexpr int64_t kRows = 16, kDepth = 32;       // a tile: 16 rows of 32 bfloat16
constexpr int64_t kTile = kRows * kDepth;        // its numbers
constexpr int64_t kWide = 2 * kRows;             // rows or columns of c in a block
constexpr int64_t kGroup = 6 * kTile;            // one depth step of a block: two tiles, three parts each
// Steps times blocks in a panel: 768 KB, which leaves room in a second-level cache of 2 MB. Depth steps packed at a time,
// fewer where the shared operand is large: it takes 12 MB, or 24 KB a block.
constexpr int64_t kPanelSteps = 128, kLeastSteps = 4, kMostSteps = 32, kSharedSteps = 2048;

// The 16 x 16 transpose of 32-bit numbers.
inline void transpose(__m512 r[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(t[i + j]), high = _mm512_castps_pd(t[i + j + 2]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0xdd);
    }
  }
  for (int j = 0; j < 8; ++j) {
    r[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
  }
}

struct Parts {
  __m512i part[3];  // each number's bfloat16 in the upper half of its 32 bits
};

inline Parts split(__m512 x) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  Parts parts;
  for (int i = 0; i < 2; ++i) {
    parts.part[i] = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper);
    x = _mm512_sub_ps(x, _mm512_castsi512_ps(parts.part[i]));
  }
  parts.part[2] = _mm512_castps_si512(x);
  return parts;
}

// Where the numbers of one operand lie: (outer, k) is at data[outer * outer_stride + k * depth_stride], and one of the
// strides is 1. The outer index is the row of a, or the column of b.
struct Operand {
  const float* data;
  int64_t outer_stride, depth_stride, outer, depth;
};

// Rows lie far apart, so the processor does not foresee what packing reads next. Any address may be asked for.
inline void ask_ahead(const float* address) { _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0); }

// Loads 16 outer indices times 32 depths: by_depth[k] holds the 16 numbers of depth k.
inline void load_by_depth(const Operand& from, int64_t outer, int64_t k, __m512 by_depth[32]) {
  const int64_t count = std::clamp<int64_t>(from.outer - outer, 0, kRows);
  const int64_t depth = std::clamp<int64_t>(from.depth - k, 0, kDepth);
  if (from.outer_stride == 1) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    for (int64_t i = 0; i < kDepth; ++i) {
      ask_ahead(from.data + (k + i + kDepth) * from.depth_stride + outer);
      by_depth[i] = i < depth ? _mm512_maskz_loadu_ps(mask, from.data + (k + i) * from.depth_stride + outer)
                              : _mm512_setzero_ps();
    }
    return;
  }
  for (int64_t part = 0; part < 2; ++part) {
    const int64_t left = std::clamp<int64_t>(depth - part * 16, 0, 16);
    const __mmask16 mask = static_cast<__mmask16>((1u << left) - 1);
    __m512* rows = by_depth + part * 16;
    for (int64_t i = 0; i < kRows; ++i) {
      ask_ahead(from.data + (outer + i) * from.outer_stride + k + part * 16 + 2 * kDepth);
      rows[i] = i < count ? _mm512_maskz_loadu_ps(mask, from.data + (outer + i) * from.outer_stride + k + part * 16)
                          : _mm512_setzero_ps();
    }
    transpose(rows);
  }
}

// The three tiles of 16 rows of a: a row's 32 depths stand one after the other.
inline void pack_left(const Operand& from, int64_t outer, int64_t k, uint16_t* to) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(kUpper);
  __m512 low[16], high[16];  // depths 0 to 15 and 16 to 31 of each row
  if (from.outer_stride == 1) {
    __m512 by_depth[32];
    load_by_depth(from, outer, k, by_depth);
    transpose(by_depth);
    transpose(by_depth + 16);
    std::copy_n(by_depth, 16, low);
    std::copy_n(by_depth + 16, 16, high);
  } else {
    const int64_t count = std::clamp<int64_t>(from.outer - outer, 0, kRows);
    const int64_t depth = std::clamp<int64_t>(from.depth - k, 0, kDepth);
    const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << depth) - 1);
    for (int64_t i = 0; i < kRows; ++i) {
      const float* row = from.data + (outer + i) * from.outer_stride + k;
      ask_ahead(row + 2 * kDepth);
      ask_ahead(row + 2 * kDepth + 16);
      low[i] = i < count ? _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), row) : _mm512_setzero_ps();
      high[i] = i < count ? _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), row + 16) : _mm512_setzero_ps();
    }
  }
  for (int64_t i = 0; i < kRows; ++i) {
    const Parts a = split(low[i]), b = split(high[i]);
    for (int p = 0; p < 3; ++p) {
      _mm512_store_si512(to + p * kTile + i * kDepth, _mm512_permutex2var_epi16(a.part[p], upper, b.part[p]));
    }
  }
}

// The three tiles of 16 columns of b: depths 2i and 2i + 1 of a column stand side by side in row i.
inline void pack_right(const Operand& from, int64_t outer, int64_t k, uint16_t* to) {
  __m512 by_depth[32];
  load_by_depth(from, outer, k, by_depth);
  for (int64_t i = 0; i < kRows; ++i) {
    const Parts a = split(by_depth[2 * i]), b = split(by_depth[2 * i + 1]);
    for (int p = 0; p < 3; ++p) {
      _mm512_store_si512(to + p * kTile + i * kDepth,
                         _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(a.part[p], 16), b.part[p]));
    }
  }
}

inline int64_t blocks(int64_t outer) { return (outer + kWide - 1) / kWide; }

// Packs blocks [first, last) of kWide outer indices, depth steps [begin, end) from depth k on; a block has `steps`.
void pack_blocks(const Operand& from, bool left, int64_t first, int64_t last, int64_t k, int64_t begin, int64_t end,
                 int64_t steps, uint16_t* to) {
  const auto pack = [&](int64_t block, int64_t step) {
    uint16_t* tiles = to + ((block - first) * steps + step) * kGroup;
    for (int64_t half = 0; half < 2; ++half) {
      (left ? pack_left : pack_right)(from, block * kWide + half * kRows, k + step * kDepth, tiles + half * 3 * kTile);
    }
  };
  if (from.outer_stride == 1) {  // in the order of memory
    for (int64_t step = begin; step < end; ++step) {
      for (int64_t block = first; block < last; ++block) pack(block, step);
    }
  } else {
    for (int64_t block = first; block < last; ++block) {
      for (int64_t step = begin; step < end; ++step) pack(block, step);
    }
  }
}

void pack_all(const Operand& from, bool left, int64_t k, int64_t steps, uint16_t* to) {
  const int64_t count = blocks(from.outer);
  if (from.outer_stride == 1) {
    parallel_ranges(steps, std::max<int64_t>(1, 32 / count), [&](int64_t begin, int64_t end) {
      pack_blocks(from, left, 0, count, k, begin, end, steps, to);
    });
  } else {
    parallel_ranges(count, std::max<int64_t>(1, 32 / steps), [&](int64_t begin, int64_t end) {
      pack_blocks(from, left, begin, end, k, 0, steps, steps, to + begin * steps * kGroup);
    });
  }
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    std::fill_n(row_bytes, 8, uint16_t{64});
    std::fill_n(rows, 8, uint8_t{16});
  }
};

// c (32 x 32) = a b + bias over `steps` depth steps; bias holds 32 numbers or is null. Tiles 0 to 3 are c; 4 and 5 hold
// rows of a, 6 and 7 columns of b.
void multiply_block(const uint16_t* a, const uint16_t* b, int64_t steps, const float* bias, float* c,
                    int64_t c_stride) {
  const int64_t stride = c_stride * static_cast<int64_t>(sizeof(float));
  if (bias != nullptr) {
    _tile_loadd(0, bias, 0);  // a stride of 0: every row of the tile is the bias
    _tile_loadd(1, bias + kRows, 0);
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + kRows, 0);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
#define LEFT(p)                                     \
  _tile_loadd(4, a + ((p) - 1) * kTile, 64);        \
  _tile_loadd(5, a + ((p) + 2) * kTile, 64)
#define RIGHT(p)                                    \
  _tile_loadd(6, b + ((p) - 1) * kTile, 64);        \
  _tile_loadd(7, b + ((p) + 2) * kTile, 64)
#define PRODUCT               \
  _tile_dpbf16ps(0, 4, 6);    \
  _tile_dpbf16ps(1, 4, 7);    \
  _tile_dpbf16ps(2, 5, 6);    \
  _tile_dpbf16ps(3, 5, 7)
  for (int64_t step = 0; step < steps; ++step, a += kGroup, b += kGroup) {
    LEFT(1);
    RIGHT(3);
    PRODUCT;
    RIGHT(2);
    PRODUCT;
    LEFT(2);
    PRODUCT;
    RIGHT(1);
    PRODUCT;
    LEFT(3);
    PRODUCT;
    LEFT(1);
    PRODUCT;
  }
#undef LEFT
#undef RIGHT
#undef PRODUCT
  _tile_stored(0, c, stride);
  _tile_stored(1, c + kRows, stride);
  _tile_stored(2, c + kRows * c_stride, stride);
  _tile_stored(3, c + kRows * c_stride + kRows, stride);
}

// The same for a block that may reach over the edge of c, or that adds to what c holds from earlier depths.
void put_block(const uint16_t* a, const uint16_t* b, int64_t steps, const float* bias, float* c, int64_t c_stride,
               bool add, int64_t rows, int64_t columns) {
  if (!add && rows >= kWide && columns >= kWide) return multiply_block(a, b, steps, bias, c, c_stride);
  alignas(64) float whole[kWide * kWide];
  float edge[kWide] = {};
  rows = std::min(rows, kWide);
  columns = std::min(columns, kWide);
  if (bias != nullptr) std::copy_n(bias, columns, edge);
  multiply_block(a, b, steps, bias != nullptr ? edge : nullptr, whole, kWide);
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = whole + i * kWide;
    float* to = c + i * c_stride;
    if (add) {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) to[j] += from[j];
    } else {
      std::copy_n(from, columns, to);
    }
  }
}

constexpr size_t kLargePage = size_t{2} << 20;

// Memory that a thread keeps from one product to the next: fresh pages would cost more than the packing itself.
class Packed {
 public:
  ~Packed() { std::free(data_); }
  uint16_t* blocks(int64_t count, int64_t steps) {
    const int64_t size = count * steps * kGroup;
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      // Large pages, so that what fits into the second-level cache does not collide there.
      const size_t bytes = (size * sizeof(uint16_t) + kLargePage - 1) / kLargePage * kLargePage;
      data_ = static_cast<uint16_t*>(std::aligned_alloc(kLargePage, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      madvise(data_, bytes, MADV_HUGEPAGE);
      size_ = size;
    }
    return data_;
  }

 private:
  uint16_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace

bool amx_usable() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // the kernel's ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool usable = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return usable;
}

void matmul_amx(const float* a, const float* b, const float* bias, float* c, int64_t M, int64_t N, int64_t K,
                bool transpose_a, bool transpose_b) {
  const Operand left = {a, transpose_a ? 1 : K, transpose_a ? M : 1, M, K};
  const Operand right = {b, transpose_b ? K : 1, transpose_b ? 1 : N, N, K};
  // The operand with fewer blocks is packed once for all threads; each chunk packs its panel of the other, which then
  // stays in its core's second-level cache while the shared blocks stream by.
  const bool share_left = M <= N;
  const Operand &shared = share_left ? left : right, &own = share_left ? right : left;
  const int64_t shared_blocks = blocks(shared.outer), own_blocks = blocks(own.outer);
  const int64_t all_steps = (K + kDepth - 1) / kDepth;
  const int64_t limit = std::clamp(kSharedSteps / shared_blocks, kLeastSteps, kMostSteps);
  const int64_t pieces = (all_steps + limit - 1) / limit, most = (all_steps + pieces - 1) / pieces;
  // No sum depends on the panels, so they may depend on the number of threads.
  const int64_t panel = std::clamp<int64_t>((own_blocks + thread_count() - 1) / thread_count(), 1, kPanelSteps / most);
  thread_local Packed shared_memory;
  uint16_t* const packed = shared_memory.blocks(shared_blocks, most);
  for (int64_t step0 = 0; step0 < all_steps; step0 += most) {
    const int64_t steps = std::min(most, all_steps - step0), k = step0 * kDepth, block = steps * kGroup;
    pack_all(shared, share_left, k, steps, packed);
    parallel_ranges(own_blocks, panel, [&](int64_t begin, int64_t end) {
      thread_local Packed own_memory;
      uint16_t* const mine = own_memory.blocks(panel, most);
      pack_blocks(own, !share_left, begin, end, k, 0, steps, steps, mine);
      const TileConfig config;
      asm volatile("" : : "r"(&config) : "memory");  // GCC up to 12.3 believes that only 8 of its bytes are read
      _tile_loadconfig(&config);
      for (int64_t i = 0; i < shared_blocks; ++i) {
        for (int64_t j = begin; j < end; ++j) {
          const uint16_t *theirs = packed + i * block, *ours = mine + (j - begin) * block;
          const int64_t row = (share_left ? i : j) * kWide, column = (share_left ? j : i) * kWide;
          put_block(share_left ? theirs : ours, share_left ? ours : theirs, steps,
                    bias != nullptr && k == 0 ? bias + column : nullptr, c + row * N + column, N, k > 0, M - row,
                    N - column);
        }
      }
      _tile_release();
    });
  }
}

}  // namespace msllm

#else

namespace msllm {

bool amx_usable() { return false; }

void matmul_amx(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t, bool, bool) {}

}  // namespace msllm

#endif
