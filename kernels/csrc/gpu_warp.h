// One warp of a GPU, as warp_tiles.h asks for it: a value is what each of its 32 threads holds in a register.
#pragma once

#define WARP_INLINE __forceinline__

struct Gpu {
  using F = float;
  using I = unsigned;
  using B = bool;
  using P = unsigned;  // two bfloat16, the first in the lower half
  using Element = unsigned short;

  static WARP_INLINE I lane() { return threadIdx.x & 31; }

  static WARP_INLINE P pack(F first, F second) {
    P pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
  static WARP_INLINE F first(P pair) { return __uint_as_float(pair << 16); }
  static WARP_INLINE F second(P pair) { return __uint_as_float(pair & 0xffff0000u); }
  // the pair where the condition holds, else zeros
  static WARP_INLINE P keep(P pair, B condition) { return pair & (condition ? 0xffffffffu : 0u); }

  // two neighbours from an even index on, one (with a zero behind it), and two from anywhere
  static WARP_INLINE P load_pair(const Element* from, I at) { return *reinterpret_cast<const P*>(from + at); }
  static WARP_INLINE P load_one(const Element* from, I at) { return from[at]; }
  static WARP_INLINE P gather(const Element* from, I first, I second) { return from[first] | P(from[second]) << 16; }
    static WARP_INLINE F load(const float* from, I at, B condition) { return condition ? from[at] : 0.0f; }
  static WARP_INLINE void store_pair(Element* to, I at, F first, F second) {
    *reinterpret_cast<P*>(to + at) = pack(first, second);
  }
  static WARP_INLINE void store_one(Element* to, I at, F value) { to[at] = Element(pack(value, 0.0f)); }
  static WARP_INLINE void add_to(float* to, I at, F value, bool onto) { to[at] = onto ? to[at] + value : value; }

  // d += a b^T of rows a [16, 16] and b [8, 16]
  static WARP_INLINE void multiply(F (&d)[4], const P (&a)[4], P b0, P b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  // d += a b^T of rows a [16, 8] and b [8, 8]
  static WARP_INLINE void multiply(F (&d)[4], P a0, P a1, P b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
  // the transpose of a matrix [8, 8]
  static WARP_INLINE P transposed(P pairs) {
    P result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pairs));
    return result;
  }

  // Sums over four neighbouring lanes, of two values at once, as a product with ones: each value is split in two TF32
  // numbers, which hold 21 of its 24 bits. Half the instructions of shuffles.
  static WARP_INLINE void sum_quads(F& x, F& y) {
    const P high_x = __float_as_uint(x) & 0xffffe000u, high_y = __float_as_uint(y) & 0xffffe000u;
    const F low_x = x - __uint_as_float(high_x), low_y = y - __uint_as_float(high_y);
    F sums[4] = {};
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(high_x), "r"(high_y), "r"(__float_as_uint(low_x)), "r"(__float_as_uint(low_y)), "r"(0x3f800000u));
    x = sums[0], y = sums[2];
  }
  static WARP_INLINE F max_of_quad(F x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
  }
  static WARP_INLINE bool all(B condition) { return __all_sync(0xffffffffu, condition); }

  static WARP_INLINE F max(F x, F y) { return fmaxf(x, y); }
  static WARP_INLINE F min(F x, F y) { return fminf(x, y); }
  static WARP_INLINE F abs(F x) { return fabsf(x); }
  static WARP_INLINE F exp2(F x) {
    F y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static WARP_INLINE F reciprocal(F x) {
    F y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static WARP_INLINE F rsqrt(F x) {
    F y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
};
