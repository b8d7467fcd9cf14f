// Attention with an online softmax over tiles of keys (Dao et al. 2022, "FlashAttention", algorithm 1): memory is O(T).
#include <cmath>
#include <memory>

#include "attention.hpp"
#include "parallel.hpp"
#include "small_matmul.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

constexpr int64_t kChunkQueries = 4 * kTileQueries;  // keys are packed anew for each chunk of queries
constexpr int64_t kFewQueries = 4;                   // up to here packing costs more than it saves

struct Softmax {  // running state of one query
  float top, sum;
};

// Replaces scores by exp(score - top), updates the state, and returns the factor that earlier tiles must be scaled by.
inline float exponentiate(float* scores, Softmax& state) {
  Vec tops = load(scores);
  for (int64_t j = kLanes; j < kTileKeys; j += kLanes) {
    const Vec next = load(scores + j);
    tops = next > tops ? next : tops;
  }
  const float most = max_lanes(tops), top = most > state.top ? most : state.top;
  const float origin = top == kHidden ? 0.0f : top;  // nothing seen yet: keep -inf minus -inf away
#pragma omp simd
  for (int64_t j = 0; j < kTileKeys; ++j) scores[j] = exp_fast(scores[j] - origin);
  Vec sums = load(scores);
  for (int64_t j = kLanes; j < kTileKeys; j += kLanes) sums += load(scores + j);
  const float factor = state.top == top ? 1.0f : exp_fast(state.top - origin);
  state.top = top;
  state.sum = state.sum * factor + sum_lanes(sums);
  return factor;
}

inline void drop(const Dropout& dropout, int64_t row, int64_t first_key, int64_t count, float* weights) {
  const uint32_t key = dropout.row_key(row);
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) weights[j] *= dropout.factor(key, first_key + j);
}

// Writes one query's output row, and its logsumexp: +inf for a query that sees nothing, whose weights are then 0.
inline void finish_row(const float* sums, const Softmax& state, int64_t C, float* out, float* logsumexp) {
  const bool empty = state.sum == 0.0f;
  const float factor = empty ? 0.0f : 1.0f / state.sum;
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) out[c] = sums[c] * factor;
  *logsumexp = empty ? std::numeric_limits<float>::infinity() : state.top + std::log(state.sum);
}

// Queries [t0, t1) of one head against all its keys.
void attend_tiles(const AttentionShape& shape, Rows q, Rows k, Rows v, int64_t b, int64_t h, int64_t t0, int64_t t1,
                  float* out, float* logsumexp) {
  const int64_t C = shape.C, width = round_up(C, kLanes), kv = h / (shape.H / shape.K), count = t1 - t0;
  const std::unique_ptr<float[]> memory(
      new float[C * kTileKeys + kTileKeys * width + kTileQueries * kTileKeys + 2 * count * width]);
  float* keys = memory.get();
  float* values = keys + C * kTileKeys;
  float* scores = values + kTileKeys * width;
  float* sums = scores + kTileQueries * kTileKeys;
  float* queries = sums + count * width;
  // Rows of a packed projection lie a power of two apart, or nearly, and would push each other out of the cache.
  pack_rows(q.at(b, t0, h), q.token_stride, count, C, queries, count, width);
  const std::unique_ptr<Softmax[]> states(new Softmax[count]);
  std::fill_n(sums, count * width, 0.0f);
  std::fill_n(states.get(), count, Softmax{kHidden, 0.0f});
  const int64_t end = key_end(shape, t1);
  for (int64_t s0 = 0; s0 < end; s0 += kTileKeys) {
    if (!tile_is_seen(shape, b, t0, count, s0)) continue;
    const int64_t filled = std::min(kTileKeys, shape.length - s0);
    pack_transposed(k.at(b, s0, kv), k.token_stride, filled, C, keys);
    pack_rows(v.at(b, s0, kv), v.token_stride, filled, C, values, kTileKeys, width);
    for (int64_t t = t0; t < t1; t += kTileQueries) {
      const int64_t rows = std::min(kTileQueries, t1 - t);
      if (!tile_is_seen(shape, b, t, rows, s0)) continue;
      multiply({queries + (t - t0) * width, width, 1}, keys, kTileKeys, scores, kTileKeys, rows, kTileKeys, C, false);
      float* out_sums = sums + (t - t0) * width;
      for (int64_t i = 0; i < rows; ++i) {
        float* row = scores + i * kTileKeys;
        finish_scores(shape, b, h, t + i, s0, row);
        const float factor = exponentiate(row, states[t - t0 + i]);
        if (shape.dropout.threshold > 0) drop(shape.dropout, dropout_row(shape, b, h, t + i), s0, kTileKeys, row);
        if (factor != 1.0f) {
#pragma omp simd
          for (int64_t c = 0; c < width; ++c) out_sums[i * width + c] *= factor;
        }
      }
      multiply({scores, kTileKeys, 1}, values, width, out_sums, width, rows, width, kTileKeys, true);
    }
  }
  for (int64_t t = t0; t < t1; ++t) {
    finish_row(sums + (t - t0) * width, states[t - t0], C, out + ((b * shape.T + t) * shape.H + h) * C,
               logsumexp + (b * shape.H + h) * shape.T + t);
  }
}

// scores[j] = query . key j; four keys at a time, so that their sums do not wait for each other.
inline void products(const float* query, const float* keys, int64_t stride, int64_t count, int64_t C, float* scores) {
  constexpr int64_t kKeys = 4;
  const int64_t whole = C / kLanes * kLanes;
  for (int64_t j = 0; j < count; j += kKeys) {
    const float* rows[kKeys];
    Vec sums[kKeys];
    for (int64_t i = 0; i < kKeys; ++i) {
      rows[i] = keys + std::min(j + i, count - 1) * stride;
      sums[i] = Vec{};
    }
    for (int64_t c = 0; c < whole; c += kLanes) {
      const Vec part = load(query + c);
      for (int64_t i = 0; i < kKeys; ++i) sums[i] += part * load(rows[i] + c);
    }
    for (int64_t i = 0; i < std::min(kKeys, count - j); ++i) {
      float sum = sum_lanes(sums[i]);
      for (int64_t c = whole; c < C; ++c) sum += query[c] * rows[i][c];
      scores[j + i] = sum;
    }
  }
}

// Asks for rows ahead of their use: with the heads of a token between them, the hardware does not foresee them.
inline void prefetch_rows(const float* from, int64_t stride, int64_t count, int64_t C) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t c = 0; c < C; c += 16) __builtin_prefetch(from + j * stride + c);
  }
}

// The few queries of all heads that share a key-value head, without packing: decoding reads each key and value once.
void attend_few(const AttentionShape& shape, Rows q, Rows k, Rows v, int64_t b, int64_t kv, float* out,
                float* logsumexp) {
  const int64_t C = shape.C, whole = C / kLanes * kLanes, T = shape.T, group = shape.H / shape.K;
  const std::unique_ptr<float[]> sums(new float[group * T * C]());
  const std::unique_ptr<Softmax[]> states(new Softmax[group * T]);
  std::fill_n(states.get(), group * T, Softmax{kHidden, 0.0f});
  float scores[kTileKeys];
  const int64_t end = key_end(shape, T);
  for (int64_t s0 = 0; s0 < end; s0 += kTileKeys) {
    const int64_t filled = std::min(kTileKeys, end - s0), following = std::min(kTileKeys, end - s0 - filled);
    const float* values = v.at(b, s0, kv);
    prefetch_rows(values, v.token_stride, filled, C);
    for (int64_t i = 0; i < group * T; ++i) {
      const int64_t h = kv * group + i / T, t = i % T;
      if (!tile_is_seen(shape, b, t, 1, s0)) continue;
      std::fill_n(scores, kTileKeys, 0.0f);
      products(q.at(b, t, h), k.at(b, s0, kv), k.token_stride, filled, C, scores);
      if (i == 0) prefetch_rows(k.at(b, s0 + filled, kv), k.token_stride, following, C);
      finish_scores(shape, b, h, t, s0, scores);
      const float factor = exponentiate(scores, states[i]);
      if (shape.dropout.threshold > 0) drop(shape.dropout, dropout_row(shape, b, h, t), s0, kTileKeys, scores);
      float* total = sums.get() + i * C;
      for (int64_t c = 0; c < C; ++c) total[c] *= factor;
      multiply({scores, 0, 1}, values, v.token_stride, total, 0, 1, whole, filled, true);
      for (int64_t j = 0; j < filled; ++j) {
        for (int64_t c = whole; c < C; ++c) total[c] += scores[j] * values[j * v.token_stride + c];
      }
    }
  }
  for (int64_t i = 0; i < group * T; ++i) {
    const int64_t h = kv * group + i / T, t = i % T;
    finish_row(sums.get() + i * C, states[i], C, out + ((b * T + t) * shape.H + h) * C,
               logsumexp + (b * shape.H + h) * T + t);
  }
}

}  // namespace

void attention(const AttentionShape& shape, Rows q, Rows k, Rows v, float* out, float* logsumexp) {
  if (shape.T <= kFewQueries) {
    const int64_t work = shape.length * shape.C * shape.T * (shape.H / shape.K) + 1;
    parallel_ranges(shape.B * shape.K, std::max<int64_t>(1, 8192 / work), [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        attend_few(shape, q, k, v, chunk / shape.K, chunk % shape.K, out, logsumexp);
      }
    });
    return;
  }
  const int64_t pieces = (shape.T + kChunkQueries - 1) / kChunkQueries;
  parallel_chunks(shape.B * shape.H * pieces, [&](int64_t chunk) {
    const int64_t bh = chunk / pieces, t0 = chunk % pieces * kChunkQueries;
    attend_tiles(shape, q, k, v, bh / shape.H, bh % shape.H, t0, std::min(shape.T, t0 + kChunkQueries), out,
                 logsumexp);
  });
}

}  // namespace MSLLM_PATH
}  // namespace msllm
