// Attention's gradient: the weights are computed again from logsumexp, tile by tile (Dao et al. 2022, algorithm 4).
#include <cmath>
#include <memory>

#include "attention.hpp"
#include "parallel.hpp"
#include "small_matmul.hpp"

namespace msllm {
namespace MSLLM_PATH {
namespace {

// One head's gradients in rows of `width` numbers, and the memory of its tiles.
class HeadGradient {
 public:
  HeadGradient(const AttentionShape& shape, Rows q, Rows k, Rows v, const float* out, const float* logsumexp,
               const float* dout)
      : shape_(shape),
        q_(q),
        k_(k),
        v_(v),
        out_(out),
        logsumexp_(logsumexp),
        dout_(dout),
        width_(round_up(shape.C, kLanes)) {
    const int64_t per_query = shape.T * width_, tile = kTileKeys * width_, score = kTileQueries * kTileKeys;
    memory_.reset(new float[3 * per_query + shape.T + 3 * tile + 2 * shape.C * kTileKeys + 2 * score]);
    float* next = memory_.get();
    const auto take = [&next](int64_t count) {
      float* start = next;
      next += count;
      return start;
    };
    queries_ = take(per_query);
    dout_rows_ = take(per_query);
    dq_rows_ = take(per_query);
    delta_ = take(shape.T);
    key_rows_ = take(tile);
    dk_rows_ = take(tile);
    dv_rows_ = take(tile);
    keys_t_ = take(shape.C * kTileKeys);
    values_t_ = take(shape.C * kTileKeys);
    weights_ = take(score);
    dscores_ = take(score);
  }

  // Writes dq of head h, and writes or adds dk and dv of its key-value head.
  void run(int64_t b, int64_t h, bool add_to_keys, MutableRows dq, MutableRows dk, MutableRows dv) {
    const int64_t C = shape_.C, T = shape_.T, kv = h / (shape_.H / shape_.K);
    pack_queries(b, h);
    const int64_t end = key_end(shape_, T);
    for (int64_t s0 = 0; s0 < end; s0 += kTileKeys) {
      const int64_t filled = std::min(kTileKeys, shape_.length - s0);
      pack_transposed(k_.at(b, s0, kv), k_.token_stride, filled, C, keys_t_);
      pack_transposed(v_.at(b, s0, kv), v_.token_stride, filled, C, values_t_);
      pack_rows(k_.at(b, s0, kv), k_.token_stride, filled, C, key_rows_, kTileKeys, width_);
      std::fill_n(dk_rows_, 2 * kTileKeys * width_, 0.0f);  // and dv_rows_, which follows
      for (int64_t t = first_query(s0); t < T; t += kTileQueries) {
        const int64_t rows = std::min(kTileQueries, T - t);
        if (tile_is_seen(shape_, b, t, rows, s0)) tile(b, h, t, rows, s0);
      }
      for (int64_t j = 0; j < filled; ++j) {
        put_row(dk_rows_ + j * width_, dk.at(b, s0 + j, kv), add_to_keys);
        put_row(dv_rows_ + j * width_, dv.at(b, s0 + j, kv), add_to_keys);
      }
    }
    for (int64_t t = 0; t < T; ++t) put_row(dq_rows_ + t * width_, dq.at(b, t, h), false);
  }

 private:
  void pack_queries(int64_t b, int64_t h) {
    const int64_t C = shape_.C, T = shape_.T, row_stride = shape_.H * C;
    const float* dout = dout_ + (b * T * shape_.H + h) * C;
    const float* out = out_ + (b * T * shape_.H + h) * C;
    pack_rows(q_.at(b, 0, h), q_.token_stride, T, C, queries_, T, width_);
    pack_rows(dout, row_stride, T, C, dout_rows_, T, width_);
    std::fill_n(dq_rows_, T * width_, 0.0f);
    for (int64_t t = 0; t < T; ++t) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < C; ++c) sum += dout[t * row_stride + c] * out[t * row_stride + c];
      delta_[t] = sum;
    }
  }

  // The tile of queries that holds the first one to see key s0.
  int64_t first_query(int64_t s0) const {
    if (!shape_.causal) return 0;
    return std::max<int64_t>(0, s0 - (shape_.length - shape_.T)) / kTileQueries * kTileQueries;
  }

  void tile(int64_t b, int64_t h, int64_t t0, int64_t rows, int64_t s0) {
    const float* queries = queries_ + t0 * width_;
    const float* dout = dout_rows_ + t0 * width_;
    multiply({queries, width_, 1}, keys_t_, kTileKeys, weights_, kTileKeys, rows, kTileKeys, shape_.C, false);
    multiply({dout, width_, 1}, values_t_, kTileKeys, dscores_, kTileKeys, rows, kTileKeys, shape_.C, false);
    for (int64_t i = 0; i < rows; ++i) {
      float *weights = weights_ + i * kTileKeys, *dscores = dscores_ + i * kTileKeys;
      finish_scores(shape_, b, h, t0 + i, s0, weights);
      const float total = logsumexp_[(b * shape_.H + h) * shape_.T + t0 + i], delta = delta_[t0 + i];
      const float scale = shape_.scale;
      if (shape_.dropout.threshold > 0) {
        const uint32_t key = shape_.dropout.row_key(dropout_row(shape_, b, h, t0 + i));
#pragma omp simd
        for (int64_t j = 0; j < kTileKeys; ++j) {
          const float weight = exp_fast(weights[j] - total), kept = shape_.dropout.factor(key, s0 + j);
          dscores[j] = weight * (dscores[j] * kept - delta) * scale;
          weights[j] = weight * kept;
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < kTileKeys; ++j) {
          const float weight = exp_fast(weights[j] - total);
          dscores[j] = weight * (dscores[j] - delta) * scale;
          weights[j] = weight;
        }
      }
    }
    multiply({weights_, 1, kTileKeys}, dout, width_, dv_rows_, width_, kTileKeys, width_, rows, true);
    multiply({dscores_, 1, kTileKeys}, queries, width_, dk_rows_, width_, kTileKeys, width_, rows, true);
    multiply({dscores_, kTileKeys, 1}, key_rows_, width_, dq_rows_ + t0 * width_, width_, rows, width_, kTileKeys,
             true);
  }

  void put_row(const float* from, float* to, bool add) const {
    if (add) {
#pragma omp simd
      for (int64_t c = 0; c < shape_.C; ++c) to[c] += from[c];
    } else {
      std::copy_n(from, shape_.C, to);
    }
  }

  const AttentionShape& shape_;
  const Rows q_, k_, v_;
  const float *out_, *logsumexp_, *dout_;
  const int64_t width_;
  std::unique_ptr<float[]> memory_;
  float *queries_, *dout_rows_, *dq_rows_, *delta_, *key_rows_, *dk_rows_, *dv_rows_, *keys_t_, *values_t_, *weights_,
      *dscores_;
};

}  // namespace

void attention_grad(const AttentionShape& shape, Rows q, Rows k, Rows v, const float* out, const float* logsumexp,
                    const float* dout, MutableRows dq, MutableRows dk, MutableRows dv) {
  const int64_t group = shape.H / shape.K;
  // A key-value head is one thread's work, its query heads in order: sums come in a fixed order.
  parallel_chunks(shape.B * shape.K, [&](int64_t chunk) {
    const int64_t b = chunk / shape.K, kv = chunk % shape.K;
    // Keys that no query sees, beyond `length` or hidden by causality, have no gradient.
    for (int64_t s = key_end(shape, shape.T); s < shape.S; ++s) {
      std::fill_n(dk.at(b, s, kv), shape.C, 0.0f);
      std::fill_n(dv.at(b, s, kv), shape.C, 0.0f);
    }
    HeadGradient head(shape, q, k, v, out, logsumexp, dout);
    for (int64_t g = 0; g < group; ++g) head.run(b, kv * group + g, g > 0, dq, dk, dv);
  });
}

}  // namespace MSLLM_PATH
}  // namespace msllm
