// The inner block of 16 tokens x 12 channels in 4 heads with 48 hidden columns, one warp to a sequence, from the packed
// weights, to the sums of weight gradients that packing.py describes (sections of 16 rows of 16, ones in column 12).
//
// Channels and heads are laid out so that every lane has six numbers of a tile and a head is half a matrix. Channel
// 8 + t stands in column 8 + 2 t, with ones in the odd columns behind. A head has columns 4 h .. 4 h + 3, of which the
// last is free; heads 0 and 1 are the columns below 8, "half" u = 0. Keys and values are kept in two matrices: that of
// heads 0 and 2 (parity 0) has zeros for the others, and so has that of 1 and 3, so that no product needs a mask.
#pragma once
#include "warp_tiles.h"

constexpr int HEADS = 4, BLOCKS = 3, TOKENS = 16;
// rows of the packed weights
constexpr int Q = 0, K = 16, V = 32, O = 48, DQ = 64, DK = 80, DV = 96, W1 = 112, W2 = 160, DW1 = 208;
// rows of the sums, which are stored column after column
constexpr int ATTENTION_SUMS = 64, MLP_SUMS = 112;

// What softmax is computed without maxima for: sums of exponentials that neither overflow nor lose small ones.
constexpr float SMALLEST_TOTAL = 0x1p-100f, LARGEST_TOTAL = 0x1p100f;

// packed column of a column of channels, packed row of a column of heads, and hidden columns as they are
template <class I>
WARP_INLINE I channel(I column) {
  const I behind = column - 8;
  return column < 8 ? column : (behind >> 1) + ((behind & 1) * 4 + 8);
}
template <class I>
WARP_INLINE I head_channel(I column) {
  const I head = column >> 2, i = column & 3;
  return i < 3 ? head * 3 + i : head + 12;
}
template <class I>
WARP_INLINE I hidden(I column) {
  return column;
}

// The matrix [rows, channels] of the packed weights from row `first` on; its transpose.
template <class W, class Row>
WARP_INLINE Matrix<W> load_weight(const typename W::Element* weights, int first, Row row) {
  using I = typename W::I;
  const I g = W::lane() >> 2, t = (W::lane() & 3) * 2;
  Matrix<W> result;
  for (int i = 0; i < 4; ++i) {
    const I at = (row(g + (i & 1) * 8) + first) * 16, column = t + (i >> 1) * 8;
    result.r[i] = W::gather(weights, at + channel(column), at + channel(column + 1));
  }
  return result;
}
template <class W, class Row>
WARP_INLINE Matrix<W> load_transposed(const typename W::Element* weights, int first, Row row) {
  using I = typename W::I;
  const I g = W::lane() >> 2, t = (W::lane() & 3) * 2;
  Matrix<W> result;
  for (int i = 0; i < 4; ++i) {
    const I at = channel(g + (i & 1) * 8), from = t + (i >> 1) * 8;
    result.r[i] = W::gather(weights, (row(from) + first) * 16 + at, (row(from + 1) + first) * 16 + at);
  }
  return result;
}

// A bias [12], or none, as a matrix [channels, columns] against the ones of `with_ones`: in two terms, as one would be
// rounded.
template <class W>
WARP_INLINE Matrix<W> load_bias(const float* bias) {
  using F = typename W::F;
  const typename W::I g = W::lane() >> 2, t = W::lane() & 3;
  const F zero = {};
  Matrix<W> result;
  for (int i = 0; i < 4; ++i) {
    const typename W::I at = channel(g + (i & 1) * 8);
    const F value = bias == nullptr ? zero : W::load(bias, at, at < 12u);
    const F rounded = W::first(W::pack(value, zero));
    result.r[i] = W::keep(W::pack(zero, t == 0u ? rounded : value - rounded), (t < 2u) & (at < (i < 2 ? 0u : 12u)));
  }
  return result;
}

// rows of a matrix [head columns, anything] that belong to heads of one parity
template <class W>
WARP_INLINE Matrix<W> rows_of(const Matrix<W>& a, int parity) {
  const typename W::B own = W::lane() >> 4 == unsigned(parity);
  return {W::keep(a.r[0], own), W::keep(a.r[1], own), W::keep(a.r[2], own), W::keep(a.r[3], own)};
}

// Adds the sums' columns 0 .. 12 to memory, column c from c * stride on; or puts them there.
template <class W, class Row>
WARP_INLINE void add_sums(float* to, int first, int stride, const Sums<W>& s, Row row, bool onto) {
  using I = typename W::I;
  const I g = W::lane() >> 2, t = (W::lane() & 3) * 2;
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i)
      W::add_to(to, channel(t + (n * 8 + (i & 1))) * stride + (row(g + (i >> 1) * 8) + first), s.v[n][i], onto);
}

template <class W>
struct AttentionWeights {
  Matrix<W> q, k[2], v[2];  // k and v by parity
  typename W::P own[2];     // ones in the rows of heads of one parity

  WARP_INLINE explicit AttentionWeights(const typename W::Element* weights) {
    const auto row = head_channel<typename W::I>;
    const typename W::F one = typename W::F{} + 1.0f;
    const Matrix<W> all_k = load_weight<W>(weights, K, row), all_v = load_weight<W>(weights, V, row);
    for (int parity = 0; parity < 2; ++parity) {
      k[parity] = rows_of(all_k, parity);
      v[parity] = rows_of(all_v, parity);
      own[parity] = W::keep(W::pack(one, one), W::lane() >> 4 == unsigned(parity));
    }
    q = load_weight<W>(weights, Q, row);
  }
};

// 2^score of the head of half u whose keys are k's. EXACT: 2^(score - largest of the row).
template <class W, bool EXACT>
WARP_INLINE Sums<W> exponentials(const Matrix<W>& q, const Matrix<W>& k, int u) {
  Sums<W> s;
  W::multiply(s.v[0], q.r[2 * u], q.r[2 * u + 1], k.r[2 * u]);
  W::multiply(s.v[1], q.r[2 * u], q.r[2 * u + 1], k.r[2 * u + 1]);
  for (int row = 0; row < 2; ++row) {
    typename W::F largest = {};
    if (EXACT)
      largest = W::max_of_quad(W::max(W::max(s.v[0][2 * row], s.v[0][2 * row + 1]),
                                      W::max(s.v[1][2 * row], s.v[1][2 * row + 1])));
    for (int n = 0; n < 2; ++n)
      for (int i = 2 * row; i < 2 * row + 2; ++i) s.v[n][i] = W::exp2(EXACT ? s.v[n][i] - largest : s.v[n][i]);
  }
  return s;
}

// Whether all totals of exponentials, [tokens, head columns], were computed as they could be.
template <class W>
WARP_INLINE bool in_range(const Sums<W>& total) {
  using F = typename W::F;
  const F a = total.v[0][0], b = total.v[0][2], c = total.v[1][0], d = total.v[1][2];
  const F least = W::min(W::min(a, b), W::min(c, d)), most = W::max(W::max(a, b), W::max(c, d));
  return W::all((least > SMALLEST_TOTAL) & (most < LARGEST_TOTAL));
}

// Whether attention on x needs no maxima.
template <class W>
WARP_INLINE bool needs_no_maxima(const Matrix<W>& x, const AttentionWeights<W>& w) {
  const Matrix<W> q = packed(product(x, w.q));
  Sums<W> total;
  for (int parity = 0; parity < 2; ++parity) {
    const Matrix<W> k = packed(product(x, w.k[parity]));
    for (int u = 0; u < 2; ++u)
      W::multiply(total.v[u], packed(exponentials<W, false>(q, k, u)).r, w.own[parity], w.own[parity]);
  }
  return in_range(total);
}

// Adds the attention half to `residual`; false, and nothing added, where only EXACT can. wo: transposed.
template <class W, bool EXACT>
WARP_INLINE bool attention(Sums<W>& residual, const Matrix<W>& x, const AttentionWeights<W>& w, const Matrix<W>& wo) {
  const Matrix<W> q = packed(product(x, w.q));
  Sums<W> o, total;
  for (int parity = 0; parity < 2; ++parity) {
    const Matrix<W> k = packed(product(x, w.k[parity])), vt = packed(product(w.v[parity], x));
    for (int u = 0; u < 2; ++u) {
      const Matrix<W> e = packed(exponentials<W, EXACT>(q, k, u));
      W::multiply(o.v[u], e.r, vt.r[u], vt.r[u + 2]);
      W::multiply(total.v[u], e.r, w.own[parity], w.own[parity]);
    }
  }
  if (!EXACT && !in_range(total)) return false;
  for (int u = 0; u < 2; ++u)
    for (int row = 0; row < 2; ++row) {
      const typename W::F inverse = W::reciprocal(total.v[u][2 * row]);  // a lane's two columns are one head's
      o.v[u][2 * row] = o.v[u][2 * row] * inverse;
      o.v[u][2 * row + 1] = o.v[u][2 * row + 1] * inverse;
    }
  multiply(residual, packed(o), wo);
  return true;
}

template <class W>
struct MlpWeights {
  Matrix<W> in[BLOCKS], out[BLOCKS], bias;

  WARP_INLINE MlpWeights(const typename W::Element* weights, const float* fc2_bias) {
    const auto row = hidden<typename W::I>;
    for (int i = 0; i < BLOCKS; ++i) {
      in[i] = load_weight<W>(weights, W1 + 16 * i, row);
      out[i] = load_transposed<W>(weights, W2 + 16 * i, row);
    }
    bias = load_bias<W>(fc2_bias);
  }
};

// Adds the MLP half.
template <class W>
WARP_INLINE void mlp(Sums<W>& residual, const Matrix<W>& x, const MlpWeights<W>& w) {
  multiply(residual, x, w.bias);
  for (int i = 0; i < BLOCKS; ++i) {
    Sums<W> h = product(x, w.in[i]);
    for (int n = 0; n < 2; ++n)
      for (int j = 0; j < 4; ++j) h.v[n][j] = gelu<W>(h.v[n][j]);
    multiply(residual, packed(h), w.out[i]);
  }
}

// Goes through a warp's sequences with `fast`, which tells whether it could do without maxima; where it could not, a
// second loop lets `exact` see to those, so that the first has no code for it.
template <class W, class Fast, class Exact>
WARP_INLINE void for_sequences(unsigned first, unsigned count, unsigned step, Fast fast, Exact exact) {
  bool missed = false;
  {
    Places<W> at(first * TOKENS);
    for (unsigned s = first; s < count; s += step, at.advance(step * TOKENS)) missed |= !fast(at);
  }
  if (missed) {
    Places<W> at(first * TOKENS);
    for (unsigned s = first; s < count; s += step, at.advance(step * TOKENS)) exact(at);
  }
}

// Sequences first, first + step, ... below `count` of x [count, 16, 12]: y, and the middle residual unless mid is null.
template <class W>
WARP_INLINE void inner_forward(const typename W::Element* x, typename W::Element* mid, typename W::Element* y,
                               const typename W::Element* weights, const float* fc2_bias, unsigned first,
                               unsigned count, unsigned step, float eps) {
  const AttentionWeights<W> a(weights);
  const Matrix<W> wo = load_transposed<W>(weights, O, head_channel<typename W::I>);
  const MlpWeights<W> m(weights, fc2_bias);
  const auto finish = [&](const Places<W>& at, Sums<W>& residual) {
    if (mid != nullptr) store_rows<W>(mid, at, residual);
    mlp(residual, with_ones<W>(normalised<W>(residual, eps).x), m);
    store_rows<W>(y, at, residual);
  };
  const auto fast = [&](const Places<W>& at) {
    const Matrix<W> rows = load_rows<W>(x, at);
    Sums<W> residual = sums<W>(widened<W>(rows));
    if (!attention<W, false>(residual, with_ones<W>(normalised<W>(rows, eps).x), a, wo)) return false;
    finish(at, residual);
    return true;
  };
  const auto exact = [&](const Places<W>& at) {
    const Matrix<W> rows = load_rows<W>(x, at), normal = with_ones<W>(normalised<W>(rows, eps).x);
    if (needs_no_maxima(normal, a)) return;
    Sums<W> residual = sums<W>(widened<W>(rows));
    attention<W, true>(residual, normal, a, wo);
    finish(at, residual);
  };
  for_sequences<W>(first, count, step, fast, exact);
}
