// Vectors of VL floats in the vector extensions of GCC and Clang: one source for AVX-512 (VL 16), AVX2 (8), and for SSE2,
// NEON or any other set of 128-bit vectors (4). Every name is local to its source file, as each is compiled for several
// instruction sets and linked into one library.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(TITN_LANES)  // for tests: AVX-512's lanes on any processor
#define VL TITN_LANES
#elif defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif
#define ALWAYS inline __attribute__((always_inline))
#define OWN __attribute__((noinline, unused))  // compiled once for all its callers, which not every source has
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_4 _Pragma("clang loop unroll_count(4)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define UNROLL_4 _Pragma("GCC unroll 4")
#endif

namespace {

typedef float V __attribute__((vector_size(VL * 4)));
typedef int32_t I __attribute__((vector_size(VL * 4)));
typedef uint32_t U __attribute__((vector_size(VL * 4)));
typedef uint16_t W __attribute__((vector_size(VL * 2)));
typedef float UnalignedV __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t UnalignedW __attribute__((vector_size(VL * 2), aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};

template <int... E> ALWAYS V splat(float s, std::integer_sequence<int, E...>) { return V{((void)E, s)...}; }
// a braced list becomes one broadcast; V{} + s does not
ALWAYS V splat(float s) { return splat(s, std::make_integer_sequence<int, VL>{}); }

// the larger one (with a full mask, as GCC 12 warns of the plain intrinsic); b where either is not a number
ALWAYS V larger(V a, V b) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_max_ps((__mmask16)-1, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
// the smaller one; b where either is not a number
ALWAYS V smaller(V a, V b) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_min_ps((__mmask16)-1, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (V)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
ALWAYS V magnitude(V a) { return (V)((U)a & 0x7fffffffu); }
ALWAYS V square_root(V a) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_sqrt_ps((__mmask16)-1, (__m512)a);
#elif defined(__AVX2__)
  return (V)_mm256_sqrt_ps((__m256)a);
#else
  V r;
  for (int i = 0; i < VL; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
#endif
}

template <int N> ALWAYS V polynomial(V x, const float (&c)[N]) {
  V p = splat(c[N - 1]);
  UNROLL for (int i = N - 2; i >= 0; --i) p = p * x + c[i];
  return p;
}

// 2^f for |f| <= 1/2: minimax, relative error 7.5e-8 and 2.6e-6
constexpr float EXP2_5[] = {1.0000000716543656f,   0.6931469670549263f,   0.24022119724871965f,
                            0.05550713289564278f,  0.009675541293008315f, 0.00132764667986612f};
constexpr float EXP2_4[] = {0.9999992614067529f, 0.6931218148134217f, 0.24024744957286737f, 0.055917859907939516f,
                            0.009570096670179107f};

// 2^t for t <= 127; at least 2^-126. EXACT: to float32, otherwise enough for bfloat16
template <bool EXACT> ALWAYS V exp2(V t) {
  t = larger(splat(-126.f), t);
  const float shift = 0x1.8p23f + 127.f;  // rounds to a whole number and adds the bias of the exponent
  const V z = t + shift, f = t - (z - shift);
  V p;
  if constexpr (EXACT) p = polynomial(f, EXP2_5);
  else p = polynomial(f, EXP2_4);
  return p * (V)((U)z << 23);  // a product, so that NaN stays NaN
}

// Phi(-a) = exp(-a^2 / 2) R(a) for a >= 0, Phi the normal distribution: minimax R; GELU's absolute error is 5e-7
constexpr float MILLS_9[] = {0.4999995529651642f,   -0.39890986680984497f,  0.2496245950460434f,    -0.13129623234272003f,
                             0.05863442271947861f,  -0.021381627768278122f, 0.005905701778829098f,  -0.0011191368103027344f,
                             0.0001264758175238967f, -6.3278616835305e-06f};
constexpr float MILLS_6[] = {0.4999743402004242f,   -0.397854208946228f,   0.24247562885284424f, -0.1132587194442749f,
                             0.03669767081737518f,  -0.006986645050346851f, 0.0005696613225154579f};
constexpr float TAIL = 16.f;  // beyond it Phi(-a) is 0 in float32, and R's powers must not overflow

struct Tail {
  V magnitude, density, probability;  // min(|x|, TAIL), exp(-x^2 / 2), Phi(-|x|)
};
template <bool EXACT> ALWAYS Tail tail(V x) {
  const V a = smaller(splat(TAIL), magnitude(x)), e = exp2<EXACT>(x * x * -0.72134752044448170f);
  V r;
  if constexpr (EXACT) r = polynomial(a, MILLS_9);
  else r = polynomial(a, MILLS_6);
  return {a, e, r * e};
}
// x Phi(x), the exact GELU
template <bool EXACT> ALWAYS V gelu(V x) {
  const Tail t = tail<EXACT>(x);
  return larger(x, V{}) - t.magnitude * t.probability;
}
struct Gelu {
  V value, slope;
};
template <bool EXACT> ALWAYS Gelu gelu_and_slope(V x) {
  const Tail t = tail<EXACT>(x);
  const V half = (V)((U)(0.5f - t.probability) ^ ((U)x & 0x80000000u));  // Phi(x) - 1/2
  return {larger(x, V{}) - t.magnitude * t.probability, (half + 0.5f) + (x * 0.39894228040143268f) * t.density};
}

// lanes of a and b by index: 0 .. VL those of a, VL .. 2 VL those of b
template <int... E> ALWAYS V pick(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, E...);
#else
  return __builtin_shuffle(a, b, I{E...});
#endif
}
template <int D, int... E> ALWAYS V low(V a, V b, std::integer_sequence<int, E...>) {
  return pick<((E & D) ? VL + (E ^ D) : E)...>(a, b);
}
template <int D, int... E> ALWAYS V high(V a, V b, std::integer_sequence<int, E...>) {
  return pick<((E & D) ? VL + E : (E ^ D))...>(a, b);
}
template <int D> ALWAYS void exchange(V* v) {
  using S = std::make_integer_sequence<int, VL>;
  UNROLL for (int i = 0; i < VL; ++i)
    if (!(i & D)) {
      const V a = v[i], b = v[i + D];
      v[i] = low<D>(a, b, S{});
      v[i + D] = high<D>(a, b, S{});
    }
}
template <int D, int... E> ALWAYS V swapped(V a, std::integer_sequence<int, E...>) { return pick<(E ^ D)...>(a, a); }
// the lanes with those D away
template <int D> ALWAYS V swapped(V a) { return swapped<D>(a, std::make_integer_sequence<int, VL>{}); }
// all lanes' sum, and the largest lane, which is any where one is not a number
ALWAYS float sum_lanes(V v) {
  if constexpr (VL >= 16) v += swapped<VL / 2>(v);
  if constexpr (VL >= 8) v += swapped<4>(v);
  v += swapped<2>(v);
  v += swapped<1>(v);
  return v[0];
}
ALWAYS float largest_lane(V v) {
  if constexpr (VL >= 16) v = larger(v, swapped<VL / 2>(v));
  if constexpr (VL >= 8) v = larger(v, swapped<4>(v));
  v = larger(v, swapped<2>(v));
  v = larger(v, swapped<1>(v));
  return v[0];
}

template <int... E> ALWAYS I count(std::integer_sequence<int, E...>) { return I{E...}; }
// v where the lane is below n, else `other`
ALWAYS V first(V v, int n, V other = V{}) {
  if (n >= VL) return v;
  const I mask = count(std::make_integer_sequence<int, VL>{}) < (I{} + n);
  return (V)(((I)v & mask) | ((I)other & ~mask));
}

// VL x VL, in log2(VL) rounds
ALWAYS void transpose(V* v) {
  if constexpr (VL >= 16) exchange<VL / 2>(v);
  if constexpr (VL >= 8) exchange<4>(v);
  exchange<2>(v);
  exchange<1>(v);
}

ALWAYS V load(const float* p) { return *(const UnalignedV*)p; }
ALWAYS V load(const bf16* p) { return (V)(__builtin_convertvector((W) * (const UnalignedW*)p, U) << 16); }
ALWAYS void store(float* p, V v) { *(UnalignedV*)p = v; }
// rounds to nearest even; NaN stays NaN
ALWAYS void store(bf16* p, V v) {
  U u = (U)v;
  u = (u + (((u >> 16) & 1u) + 0x7fffu)) >> 16;
  u = (v == v) ? u : (U{} + 0x7fc0u);
#if defined(__AVX2__) && VL == 8
  const __m256i w = (__m256i)u;
  const __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  std::memcpy(p, &h, sizeof h);
#else
  *(UnalignedW*)p = __builtin_convertvector(u, W);
#endif
}

// n numbers of memory, the first lanes; the others are 0
ALWAYS V some(const float* p, int n) {
  if (n >= VL) return load(p);
  V v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

ALWAYS float load_one(const float* p) { return *p; }
ALWAYS float load_one(const bf16* p) {
  const uint32_t u = (uint32_t)p->bits << 16;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}
ALWAYS void store_one(float* p, float v) { *p = v; }
ALWAYS void store_one(bf16* p, float v) {
  bf16 lanes[VL];
  store(lanes, splat(v));
  *p = lanes[0];
}

}  // namespace
