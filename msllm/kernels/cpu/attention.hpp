// What attention's forward and backward pass share: tiles of keys, and the masks of one tile of scores.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels.hpp"
#include "vector_math.hpp"

namespace msllm {
namespace MSLLM_PATH {

constexpr int64_t kTileKeys = 64;
constexpr int64_t kTileQueries = 48;
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Copies `count` rows of C numbers to rows of `width` >= C numbers; what is left over is zero, up to `rows` rows.
inline void pack_rows(const float* from, int64_t stride, int64_t count, int64_t C, float* to, int64_t rows,
                      int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t filled = i < count ? C : 0;
    if (filled > 0) std::copy_n(from + i * stride, C, to + i * width);
    std::fill(to + i * width + filled, to + (i + 1) * width, 0.0f);
  }
}

// Copies `count` rows of C numbers to C rows of kTileKeys numbers: the transposed tile.
inline void pack_transposed(const float* from, int64_t stride, int64_t count, int64_t C, float* to) {
  constexpr int64_t kBlock = 8;  // rows and columns at a time, so that lines of the cache are used while they are there
  for (int64_t c0 = 0; c0 < C; c0 += kBlock) {
    const int64_t c1 = std::min(C, c0 + kBlock);
    for (int64_t j0 = 0; j0 < count; j0 += kBlock) {
      const int64_t j1 = std::min(count, j0 + kBlock);
      if (c1 - c0 == kBlock && j1 - j0 == kBlock) {
        float block[kBlock][kBlock];
        for (int64_t j = 0; j < kBlock; ++j) {
          for (int64_t c = 0; c < kBlock; ++c) block[c][j] = from[(j0 + j) * stride + c0 + c];
        }
        for (int64_t c = 0; c < kBlock; ++c) std::copy_n(block[c], kBlock, to + (c0 + c) * kTileKeys + j0);
      } else {
        for (int64_t c = c0; c < c1; ++c) {
          for (int64_t j = j0; j < j1; ++j) to[c * kTileKeys + j] = from[j * stride + c];
        }
      }
    }
  }
  for (int64_t c = 0; c < C; ++c) std::fill(to + c * kTileKeys + count, to + (c + 1) * kTileKeys, 0.0f);
}

// The keys of one tile that query t of batch b sees: [begin, end) counted from the tile's first key.
struct Span {
  int64_t begin, end;
  bool whole() const { return begin <= 0 && end >= kTileKeys; }
};

inline Span visible_span(const AttentionShape& shape, int64_t b, int64_t t, int64_t first_key) {
  const int64_t position = shape.length - shape.T + t;
  const int64_t end = shape.causal ? std::min(shape.length, position + 1) : shape.length;
  const int64_t begin = shape.row_start == nullptr ? 0 : shape.row_start[b * shape.T + t];
  return {std::max<int64_t>(begin - first_key, 0), std::min(end - first_key, kTileKeys)};
}

// Turns products q k^T of one query against one tile into scores: scale, ALiBi, and kHidden where it must not look.
inline void finish_scores(const AttentionShape& shape, int64_t b, int64_t h, int64_t t, int64_t first_key,
                          float* scores) {
  const Span span = visible_span(shape, b, t, first_key);
  const float scale = shape.scale;
  if (shape.slopes == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < kTileKeys; ++j) scores[j] *= scale;
  } else {
    const float slope = shape.slopes[h];
    const int32_t distance = static_cast<int32_t>(first_key - (shape.length - shape.T + t));
#pragma omp simd
    for (int32_t j = 0; j < kTileKeys; ++j) {
      scores[j] = scores[j] * scale + slope * static_cast<float>(distance + j);
    }
  }
  if (!span.whole()) {
    const int32_t begin = static_cast<int32_t>(span.begin), end = static_cast<int32_t>(span.end);
#pragma omp simd
    for (int32_t j = 0; j < kTileKeys; ++j) scores[j] = (j >= begin) & (j < end) ? scores[j] : kHidden;
  }
  if (shape.key_mask != nullptr) {
    const int32_t* mask = shape.key_mask + b * shape.length + first_key;
    const int64_t count = std::min(kTileKeys, shape.length - first_key);
    for (int64_t j = 0; j < count; ++j) scores[j] = mask[j] != 0 ? scores[j] : kHidden;
  }
}

// The number of the first key that no query before `query_end` sees.
inline int64_t key_end(const AttentionShape& shape, int64_t query_end) {
  if (!shape.causal) return shape.length;
  return std::max<int64_t>(0, std::min(shape.length, shape.length - shape.T + query_end));
}

// Whether some query of [t, t + rows) may see some key of the tile at first_key: packed documents leave many tiles out.
inline bool tile_is_seen(const AttentionShape& shape, int64_t b, int64_t t, int64_t rows, int64_t first_key) {
  if (key_end(shape, t + rows) <= first_key) return false;
  if (shape.row_start == nullptr) return true;
  const int32_t* start = shape.row_start + b * shape.T + t;
  return *std::min_element(start, start + rows) < first_key + kTileKeys;
}

// The row number that random bits are drawn by.
inline int64_t dropout_row(const AttentionShape& shape, int64_t b, int64_t h, int64_t t) {
  return (b * shape.H + h) * shape.T + t;
}

}  // namespace MSLLM_PATH
}  // namespace msllm
