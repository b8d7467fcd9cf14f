// Random masks as a pure function of (seed, call, row, column), so that no thread count, tile size or backward pass
// can change them. stock.py draws the same bits.
#pragma once

#include <cstdint>

namespace msllm {

// murmur3's finaliser: every input bit moves every output bit.
inline uint32_t mix(uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

struct Dropout {
  uint32_t key = 0;
  uint32_t threshold = 0;  // of the upper 24 bits; 0 drops nothing
  float scale = 1.0f;

  Dropout() = default;
  Dropout(uint32_t seed, uint32_t call, double p)
      : key(mix(seed ^ mix(call))),
        threshold(static_cast<uint32_t>(p * 16777216.0)),
        scale(static_cast<float>(1.0 / (1.0 - p))) {}

  uint32_t row_key(int64_t row) const { return mix(key ^ mix(static_cast<uint32_t>(row))); }

  // 0 for a dropped element, 1 / (1 - p) for a kept one.
  float factor(uint32_t row_key, int64_t column) const {
    return (mix(row_key ^ static_cast<uint32_t>(column)) >> 8) >= threshold ? scale : 0.0f;
  }
};

}  // namespace msllm
