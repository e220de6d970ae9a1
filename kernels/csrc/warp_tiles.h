// Small matrices in the registers of one warp, and what is done to them without leaving it.
//
// W says what a warp is: that of a GPU (gpu_warp.h), or one of 32 lanes in the arrays of a CPU, for tests. Of its
// types, F is a float in every lane, I an unsigned, B a condition and P a pair of neighbouring elements. With lane =
// 4 g + t, a matrix of 16 x 16 lies as tensor cores want it: the lane has rows g and g + 8, columns 2 t, 2 t + 1,
// 2 t + 8 and 2 t + 9. It is left and right operand alike, as the product is a b^T.
#pragma once

// 32-bit sums: v[n] holds columns 8 n .. 8 n + 7, as (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
template <class W>
struct Sums {
  typename W::F v[2][4] = {};
};

// operands: r[0] and r[1] hold columns 2 t, 2 t + 1 of rows g and g + 8, r[2] and r[3] columns 2 t + 8, 2 t + 9
template <class W>
struct Matrix {
  typename W::P r[4];
};

template <class W>
WARP_INLINE Matrix<W> packed(const Sums<W>& s) {
  return {W::pack(s.v[0][0], s.v[0][1]), W::pack(s.v[0][2], s.v[0][3]), W::pack(s.v[1][0], s.v[1][1]),
          W::pack(s.v[1][2], s.v[1][3])};
}

template <class W>
WARP_INLINE Matrix<W> transposed(const Matrix<W>& a) {
  return {W::transposed(a.r[0]), W::transposed(a.r[2]), W::transposed(a.r[1]), W::transposed(a.r[3])};
}

// d += a b^T
template <class W>
WARP_INLINE void multiply(Sums<W>& d, const Matrix<W>& a, const Matrix<W>& b) {
  W::multiply(d.v[0], a.r, b.r[0], b.r[2]);
  W::multiply(d.v[1], a.r, b.r[1], b.r[3]);
}

template <class W>
WARP_INLINE Sums<W> product(const Matrix<W>& a, const Matrix<W>& b) {
  Sums<W> d;
  multiply(d, a, b);
  return d;
}

// the float32 tile of token rows [16, 12] whose lane has six numbers: channels 2 t, 2 t + 1 and 8 + t of both rows
template <class W>
struct Tokens {
  typename W::F v[2][3];  // row g or g + 8
};

// Where a lane's numbers of sixteen rows of 12 elements are in memory, the rows numbered from `first` on.
template <class W>
struct Places {
  typename W::I pair, one;
  WARP_INLINE explicit Places(unsigned first) {
    const typename W::I g = W::lane() >> 2, t = W::lane() & 3;
    pair = (g + first) * 12 + t * 2;
    one = (g + first) * 12 + t + 8;
  }
  WARP_INLINE void advance(unsigned rows) {
    pair = pair + rows * 12;
    one = one + rows * 12;
  }
};

constexpr int ROWS_BELOW = 8 * 12;  // elements from row g to row g + 8

// Sixteen rows as an operand: channel 8 + t stands in column 2 t + 8, and the columns behind it are 0.
template <class W>
WARP_INLINE Matrix<W> load_rows(const typename W::Element* from, const Places<W>& at) {
  return {W::load_pair(from, at.pair), W::load_pair(from + ROWS_BELOW, at.pair), W::load_one(from, at.one),
          W::load_one(from + ROWS_BELOW, at.one)};
}

template <class W>
WARP_INLINE Tokens<W> widened(const Matrix<W>& a) {
  return {{{W::first(a.r[0]), W::second(a.r[0]), W::first(a.r[2])},
           {W::first(a.r[1]), W::second(a.r[1]), W::first(a.r[3])}}};
}

template <class W>
WARP_INLINE void store_rows(typename W::Element* to, const Places<W>& at, const Sums<W>& s) {
  W::store_pair(to, at.pair, s.v[0][0], s.v[0][1]);
  W::store_pair(to + ROWS_BELOW, at.pair, s.v[0][2], s.v[0][3]);
  W::store_one(to, at.one, s.v[1][0]);
  W::store_one(to + ROWS_BELOW, at.one, s.v[1][2]);
}

// the columns of `s` that are channels, and back; the others become 0
template <class W>
WARP_INLINE Tokens<W> tokens(const Sums<W>& s) {
  return {{{s.v[0][0], s.v[0][1], s.v[1][0]}, {s.v[0][2], s.v[0][3], s.v[1][2]}}};
}
template <class W>
WARP_INLINE Sums<W> sums(const Tokens<W>& x) {
  const typename W::F zero = {};
  return {{{x.v[0][0], x.v[0][1], x.v[1][0], x.v[1][1]}, {x.v[0][2], zero, x.v[1][2], zero}}};
}

// Rows brought to mean 0 and variance 1, and 1 / deviation of rows g and g + 8. `total`: their sums.
template <class W>
struct Normalised {
  Tokens<W> x;
  typename W::F scale[2];
};

template <class W>
WARP_INLINE Normalised<W> normalised(Tokens<W> x, const typename W::F (&total)[2], float eps) {
  using F = typename W::F;
  F square[2];
  for (int row = 0; row < 2; ++row) {
    for (int i = 0; i < 3; ++i) x.v[row][i] = x.v[row][i] - total[row] * (1.0f / 12);
    square[row] = x.v[row][0] * x.v[row][0] + x.v[row][1] * x.v[row][1] + x.v[row][2] * x.v[row][2];
  }
  W::sum_quads(square[0], square[1]);
  Normalised<W> result;
  for (int row = 0; row < 2; ++row) {
    result.scale[row] = W::rsqrt(square[row] * (1.0f / 12) + eps);
    for (int i = 0; i < 3; ++i) result.x.v[row][i] = x.v[row][i] * result.scale[row];
  }
  return result;
}

// of rows as they were loaded: their sums are a product with ones, exact
template <class W>
WARP_INLINE Normalised<W> normalised(const Matrix<W>& rows, float eps) {
  const typename W::F one = typename W::F{} + 1.0f;
  const typename W::P ones = W::pack(one, one);
  typename W::F sum[4] = {};
  W::multiply(sum, rows.r, ones, ones);
  return normalised<W>(widened<W>(rows), {sum[0], sum[2]}, eps);
}

template <class W>
WARP_INLINE Normalised<W> normalised(const Sums<W>& s, float eps) {
  const Tokens<W> x = tokens(s);
  typename W::F total[2] = {x.v[0][0] + x.v[0][1] + x.v[0][2], x.v[1][0] + x.v[1][1] + x.v[1][2]};
  W::sum_quads(total[0], total[1]);
  return normalised<W>(x, total, eps);
}

// as an operand, ones in the columns that are no channel
template <class W>
WARP_INLINE Matrix<W> with_ones(const Tokens<W>& x) {
  const typename W::F one = typename W::F{} + 1.0f;
  return {W::pack(x.v[0][0], x.v[0][1]), W::pack(x.v[1][0], x.v[1][1]), W::pack(x.v[0][2], one),
          W::pack(x.v[1][2], one)};
}

// Minimax fits on [0, 5], weighted by what they go into; the tail falls beyond, as its leading coefficient is negative.
// log2 Phi(-a), the logarithm of the normal distribution function, weighted by max(a, 0.2) Phi(-a):
constexpr float GELU_Q0 = -1.00106945f, GELU_Q1 = -1.1371408f, GELU_Q2 = -0.49181571f, GELU_Q3 = -0.02668003f;
// 1 - a phi(a) / Phi(-a), the slope of a Phi(-a) over Phi(-a), weighted by Phi(-a):
constexpr float GELU_R0 = 1.00010183f, GELU_R1 = -0.79042401f, GELU_R2 = -0.67634053f, GELU_R3 = -0.05822937f;

// Phi(-a) for a >= 0, such that a Phi(-a) is right to 8e-5
template <class W>
WARP_INLINE typename W::F gelu_tail(typename W::F a) {
  return W::exp2(((a * GELU_Q3 + GELU_Q2) * a + GELU_Q1) * a + GELU_Q0);
}

// h Phi(h), right to 8e-5
template <class W>
WARP_INLINE typename W::F gelu(typename W::F h) {
  const typename W::F a = W::abs(h), zero = {};
  return W::max(h, zero) - a * gelu_tail<W>(a);
}

// the same, and in `slope` its derivative, right to 4e-4: for h < 0 it is Phi(-a) R(a)
template <class W>
WARP_INLINE typename W::F gelu(typename W::F h, typename W::F& slope) {
  const typename W::F a = W::abs(h), zero = {}, tail = gelu_tail<W>(a);
  const typename W::F below = tail * (((a * GELU_R3 + GELU_R2) * a + GELU_R1) * a + GELU_R0);
  slope = h > 0.0f ? 1.0f - below : below;
  return W::max(h, zero) - a * tail;
}
