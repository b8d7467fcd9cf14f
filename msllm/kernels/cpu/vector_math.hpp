// Vectors of the widest kind the target has, and branch-free elementary functions that the compiler can vectorise.
// NaN in, NaN out: a NaN loss must stay visible.
#pragma once

#include <cstdint>
#include <cstring>

namespace msllm {
namespace MSLLM_PATH {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

inline Vec splat(float x) { return x - Vec{}; }

template <int kCount>
struct Lanes {
  typedef float Type __attribute__((vector_size(kCount * sizeof(float))));
};

// Adds or compares halves until one number is left: adding lane after lane would wait for each sum.
template <int kCount, typename Join>
inline float fold_lanes(typename Lanes<kCount>::Type v, Join&& join) {
  if constexpr (kCount == 2) {
    return join(v[0], v[1]);
  } else {
    typename Lanes<kCount / 2>::Type low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return fold_lanes<kCount / 2>(join(low, high), join);
  }
}

inline float sum_lanes(Vec v) {
  return fold_lanes<kLanes>(v, [](auto a, auto b) { return a + b; });
}

inline float max_lanes(Vec v) {
  return fold_lanes<kLanes>(v, [](auto a, auto b) { return a > b ? a : b; });
}

// The sum of part(i), a vector that starts at i, for i below the whole multiples of kLanes in n; and of rest(i) beyond.
template <typename Part, typename Rest>
inline float sum_over(int64_t n, Part&& part, Rest&& rest) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] += part(i + j * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) sums[0] += part(i);
  float sum = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) sum += rest(i);
  return sum;
}

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <typename To, typename From>
inline To bits_to(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// e^x within 1 unit in the last place for x in [-87.3, 88.3]; 0 below, and constant above (2.3e38).
inline float exp_fast(float x) {
  const float low = -87.3f, high = 88.3f;
  float y = low > x ? low : x;  // written so that NaN passes through
  y = high < y ? high : y;
  // n = round(x / ln 2), found by adding 1.5 * 2^23: the sum's low bits are n.
  const float shift = 12582912.0f;
  const float shifted = y * 1.44269504f + shift;
  const float n = shifted - shift;
  const int32_t exponent = bits_to<int32_t>(shifted) << 23;
  float r = y - n * 0.693359375f;  // ln 2 in two parts: the first has few bits, so that n times it is exact
  r = r + n * 2.12194440e-4f;
  // e^r = 1 + r + r^2 p(r) for |r| <= ln(2) / 2
  float p = 0.00019790245278272778f;
  p = p * r + 0.0013944759266451001f;
  p = p * r + 0.008333497680723667f;
  p = p * r + 0.04166629537940025f;
  p = p * r + 0.1666666567325592f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const float e = p * bits_to<float>(exponent + (127 << 23));  // a product, so that NaN stays NaN
  return x < low ? 0.0f : e;
}

inline float sigmoid_fast(float x) { return 1.0f / (1.0f + exp_fast(-x)); }

// The density of the standard normal distribution.
inline float normal_density(float x) { return 0.398942280f * exp_fast(-0.5f * x * x); }

// P(X <= x) of the standard normal distribution within 4e-7 of itself, its lower tail included down to -5. The tail is
// exp(-x^2/2) times a slowly varying function, fitted by a polynomial in t = 1 / (1 + 0.34 |x|).
inline float normal_cdf(float x) {
  const float a = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.34f * a);
  float p = -0.026370428502559662f;
  p = p * t + 0.14067286252975464f;
  p = p * t - 0.27546370029449463f;
  p = p * t + 0.20473408699035645f;
  p = p * t - 0.046395931392908096f;
  p = p * t + 0.11603528261184692f;
  p = p * t + 0.11503501981496811f;
  p = p * t + 0.13613349199295044f;
  p = p * t + 0.13561934232711792f;
  const float tail = exp_fast(-0.5f * x * x) * (p * t);
  return x < 0.0f ? tail : 1.0f - tail;
}

}  // namespace MSLLM_PATH
}  // namespace msllm
