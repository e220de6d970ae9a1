// A warp of 32 lanes in arrays, for warp_tiles.h on a CPU: what gpu_warp.h does by instructions is done here by their
// definitions, lane by lane. E: a number in memory and in the operands of products, float or Bf16.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define WARP_INLINE inline

struct Bf16 {
  uint16_t bits;
};
inline float value(float x) { return x; }
inline float value(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline void round_to(float& to, float x) { to = x; }
inline void round_to(Bf16& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to.bits = uint16_t(std::isnan(x) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class E>
struct Emulated {
  using F = float __attribute__((vector_size(128)));
  using I = uint32_t __attribute__((vector_size(128)));
  using B = int32_t __attribute__((vector_size(128)));
  using Element = E;
  struct P {
    E v[32][2];
  };

  static I lane() {
    I lanes;
    for (int l = 0; l < 32; ++l) lanes[l] = l;
    return lanes;
  }

  static P pack(F first, F second) {
    P pair;
    for (int l = 0; l < 32; ++l) round_to(pair.v[l][0], first[l]), round_to(pair.v[l][1], second[l]);
    return pair;
  }
  static F first(const P& pair) { return each([&](int l) { return value(pair.v[l][0]); }); }
  static F second(const P& pair) { return each([&](int l) { return value(pair.v[l][1]); }); }
  static P keep(const P& pair, B condition) {
    P kept = pair;
    for (int l = 0; l < 32; ++l)
      if (!condition[l]) kept.v[l][0] = kept.v[l][1] = E{};
    return kept;
  }

  static P load_pair(const E* from, I at) { return gather(from, at, at + 1); }
  static P load_one(const E* from, I at) {
    P pair = gather(from, at, at);
    for (auto& each : pair.v) each[1] = E{};
    return pair;
  }
  static P gather(const E* from, I first, I second) {
    P pair;
    for (int l = 0; l < 32; ++l) pair.v[l][0] = from[first[l]], pair.v[l][1] = from[second[l]];
    return pair;
  }
  static F load(const float* from, I at, B condition) {
    return each([&](int l) { return condition[l] ? from[at[l]] : 0.0f; });
  }
  static void store_pair(E* to, I at, F first, F second) {
    store_one(to, at, first);
    store_one(to, at + 1, second);
  }
  static void store_one(E* to, I at, F value) {
    for (int l = 0; l < 32; ++l) round_to(to[at[l]], value[l]);
  }
  static void add_to(float* to, I at, F value, bool onto) {
    for (int l = 0; l < 32; ++l) to[at[l]] = onto ? to[at[l]] + value[l] : value[l];
  }

  static void multiply(F (&d)[4], const P (&a)[4], const P& b0, const P& b1) {
    multiply(d, a[0], a[1], b0);
    multiply(d, a[2], a[3], b1);
  }
  static void multiply(F (&d)[4], const P& a0, const P& a1, const P& b) {
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        float sum = 0;
        for (int k = 0; k < 8; ++k)
          sum += value((row < 8 ? a0 : a1).v[row % 8 * 4 + k / 2][k % 2]) * value(b.v[column * 4 + k / 2][k % 2]);
        d[row / 8 * 2 + column % 2][row % 8 * 4 + column / 2] += sum;
      }
  }
  static P transposed(const P& pairs) {
    P result;
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column)
        result.v[column * 4 + row / 2][row % 2] = pairs.v[row * 4 + column / 2][column % 2];
    return result;
  }

  static void sum_quads(F& x, F& y) {
    x = sum_of_quad(x);
    y = sum_of_quad(y);
  }
  static F max_of_quad(F x) {
    return each([&](int l) { return std::fmax(std::fmax(x[l], x[l ^ 1]), std::fmax(x[l ^ 2], x[l ^ 3])); });
  }
  static bool all(B condition) {
    for (int l = 0; l < 32; ++l)
      if (!condition[l]) return false;
    return true;
  }

  static F max(F x, F y) { return each([&](int l) { return std::fmax(x[l], y[l]); }); }
  static F min(F x, F y) { return each([&](int l) { return std::fmin(x[l], y[l]); }); }
  static F abs(F x) { return each([&](int l) { return std::fabs(x[l]); }); }
  static F exp2(F x) { return each([&](int l) { return flushed(std::exp2(x[l])); }); }
  static F reciprocal(F x) { return each([&](int l) { return flushed(1.0f / x[l]); }); }
  static F rsqrt(F x) { return each([&](int l) { return 1.0f / std::sqrt(x[l]); }); }

 private:
  static F sum_of_quad(F x) {
    return each([&](int l) { return x[l / 4 * 4] + x[l / 4 * 4 + 1] + x[l / 4 * 4 + 2] + x[l / 4 * 4 + 3]; });
  }
  template <class Function>
  static F each(Function function) {
    F result;
    for (int l = 0; l < 32; ++l) result[l] = function(l);
    return result;
  }
  static float flushed(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; }
};
