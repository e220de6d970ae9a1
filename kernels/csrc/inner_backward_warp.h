// The backward of inner_warp.h, one function for each half; both recompute their half from its input. The sums of
// weight gradients stay in registers over all of a warp's sequences.
#pragma once
#include "inner_warp.h"

// dy + LayerNorm's backward of dx, whose mean over the channels is already zero.
template <class W>
WARP_INLINE Sums<W> input_gradient(const Matrix<W>& dy, const Sums<W>& dx, const Normalised<W>& n) {
  using F = typename W::F;
  const Tokens<W> given = widened<W>(dy);
  Tokens<W> d = tokens(dx);
  F along[2];
  for (int row = 0; row < 2; ++row)
    along[row] = d.v[row][0] * n.x.v[row][0] + d.v[row][1] * n.x.v[row][1] + d.v[row][2] * n.x.v[row][2];
  W::sum_quads(along[0], along[1]);
  for (int row = 0; row < 2; ++row) {
    const F share = along[row] * (1.0f / 12);
    for (int i = 0; i < 3; ++i)
      d.v[row][i] = given.v[row][i] + (d.v[row][i] - n.x.v[row][i] * share) * n.scale[row];
  }
  return sums<W>(d);
}

template <class W>
struct MlpGradients {
  Sums<W> in[BLOCKS], out[BLOCKS], dy;  // [hidden, channels and 1], [hidden, channels], and 16 times the sum of dy

  WARP_INLINE void add_to(float* to, bool onto) const {
    const auto row = hidden<typename W::I>;
    for (int i = 0; i < BLOCKS; ++i) {
      add_sums<W>(to, 16 * i, MLP_SUMS, in[i], row, onto);
      add_sums<W>(to, 16 * (BLOCKS + i), MLP_SUMS, out[i], row, onto);
    }
    add_sums<W>(to, 32 * BLOCKS, MLP_SUMS, dy, row, onto);
  }
};

// dmid from mid and dy, for the sequences of `inner_forward`.
template <class W>
WARP_INLINE MlpGradients<W> inner_mlp_backward(const typename W::Element* mid, const typename W::Element* dy,
                                               typename W::Element* dmid, const typename W::Element* weights,
                                               unsigned first, unsigned count, unsigned step, float eps) {
  const auto row = hidden<typename W::I>;
  Matrix<W> in[BLOCKS], out[BLOCKS], back[BLOCKS];
  for (int i = 0; i < BLOCKS; ++i) {
    in[i] = load_weight<W>(weights, W1 + 16 * i, row);
    out[i] = load_weight<W>(weights, W2 + 16 * i, row);
    back[i] = load_transposed<W>(weights, DW1 + 16 * i, row);
  }
  const typename W::F one = typename W::F{} + 1.0f;
  const typename W::P pair = W::pack(one, one);
  const Matrix<W> ones = {pair, pair, pair, pair};
  Places<W> at(first * TOKENS);
  MlpGradients<W> g;
  for (unsigned s = first; s < count; s += step) {
    const Matrix<W> rows = load_rows<W>(mid, at), d = load_rows<W>(dy, at), dt = transposed(d);
    const Normalised<W> n = normalised<W>(rows, eps);
    const Matrix<W> x = with_ones<W>(n.x), xt = transposed(x);
    multiply(g.dy, ones, dt);
    Sums<W> dx;
    for (int i = 0; i < BLOCKS; ++i) {
      Sums<W> h = product(in[i], x), dh = product(out[i], d);  // [hidden, tokens]
      for (int half = 0; half < 2; ++half)
        for (int j = 0; j < 4; ++j) {
          typename W::F slope;
          h.v[half][j] = gelu<W>(h.v[half][j], slope);
          dh.v[half][j] = dh.v[half][j] * slope;
        }
      const Matrix<W> gradient = packed(dh);
      multiply(g.in[i], gradient, xt);
      multiply(g.out[i], packed(h), dt);
      multiply(dx, transposed(gradient), back[i]);
    }
    store_rows<W>(dmid, at, input_gradient(d, dx, n));
    at.advance(step * TOKENS);
  }
  return g;
}

template <class W>
struct AttentionGradients {
  Sums<W> q, k, v, o;  // [head columns, channels and 1], the last against dy

  WARP_INLINE void add_to(float* to, bool onto) const {
    const auto row = head_channel<typename W::I>;
    add_sums<W>(to, 0, ATTENTION_SUMS, q, row, onto);
    add_sums<W>(to, 16, ATTENTION_SUMS, k, row, onto);
    add_sums<W>(to, 32, ATTENTION_SUMS, v, row, onto);
    add_sums<W>(to, 48, ATTENTION_SUMS, o, row, onto);
  }
};

template <class W>
struct AttentionBackwardWeights : AttentionWeights<W> {
  Matrix<W> o, dq, dk, dv;
  typename W::P own_column[2];  // ones in the columns of heads of one parity

  WARP_INLINE explicit AttentionBackwardWeights(const typename W::Element* weights) : AttentionWeights<W>(weights) {
    const auto row = head_channel<typename W::I>;
    const typename W::F one = typename W::F{} + 1.0f;
    for (int parity = 0; parity < 2; ++parity)
      own_column[parity] = W::keep(W::pack(one, one), (W::lane() & 3) >> 1 == unsigned(parity));
    o = load_weight<W>(weights, O, row);
    dq = load_transposed<W>(weights, DQ, row);
    dk = load_transposed<W>(weights, DK, row);
    dv = load_transposed<W>(weights, DV, row);
  }
};

// Adds one sequence to g and gives the gradient of its normalised tokens in dx; false, and nothing added, where only
// EXACT can. With e the exponentials and do' = do / total: ds = e (do' v^T - sum(do' o)), where the sum over a head's
// columns is a product with ones, and dv = e^T do'.
template <class W, bool EXACT>
WARP_INLINE bool attention_backward(AttentionGradients<W>& g, Sums<W>& dx, const Matrix<W>& x, const Matrix<W>& dy,
                                    const AttentionBackwardWeights<W>& w) {
  const Matrix<W> q = packed(product(x, w.q));
  Matrix<W> k[2], vt[2];
  for (int parity = 0; parity < 2; ++parity) {
    k[parity] = packed(product(x, w.k[parity]));
    vt[parity] = packed(product(w.v[parity], x));
  }
  Sums<W> o, total, d = product(dy, w.o), dq, dk, dv;
  for (int u = 0; u < 2; ++u) {
    Sums<W> e[2];
    Matrix<W> kept[2];
    for (int parity = 0; parity < 2; ++parity) {
      e[parity] = exponentials<W, EXACT>(q, k[parity], u);
      kept[parity] = packed(e[parity]);
      W::multiply(o.v[u], kept[parity].r, vt[parity].r[u], vt[parity].r[u + 2]);
      W::multiply(total.v[u], kept[parity].r, w.own[parity], w.own[parity]);
    }
    typename W::F minus[4];
    for (int i = 0; i < 4; ++i) {
      const typename W::F inverse = W::reciprocal(total.v[u][i & 2]);
      o.v[u][i] = o.v[u][i] * inverse;
      d.v[u][i] = d.v[u][i] * inverse;
      minus[i] = -d.v[u][i] * o.v[u][i];
    }
    const Matrix<W> both = {W::pack(d.v[u][0], d.v[u][1]), W::pack(d.v[u][2], d.v[u][3]), W::pack(minus[0], minus[1]),
                            W::pack(minus[2], minus[3])};
    const typename W::P dt[2] = {W::transposed(both.r[0]), W::transposed(both.r[1])};
    const typename W::P qt[2] = {W::transposed(q.r[2 * u]), W::transposed(q.r[2 * u + 1])};
    for (int parity = 0; parity < 2; ++parity) {
      const typename W::B own = W::lane() >> 4 == unsigned(parity);
      Sums<W> ds;
      for (int n = 0; n < 2; ++n) {
        W::multiply(ds.v[n], both.r, W::transposed(vt[parity].r[u + 2 * n]), w.own_column[parity]);
        for (int i = 0; i < 4; ++i) ds.v[n][i] = ds.v[n][i] * e[parity].v[n][i];
      }
      const Matrix<W> gradient = packed(ds);
      W::multiply(dv.v[u], transposed(kept[parity]).r, W::keep(dt[0], own), W::keep(dt[1], own));
      W::multiply(dq.v[u], gradient.r, W::transposed(k[parity].r[2 * u]), W::transposed(k[parity].r[2 * u + 1]));
      W::multiply(dk.v[u], transposed(gradient).r, W::keep(qt[0], own), W::keep(qt[1], own));
    }
  }
  if (!EXACT && !in_range(total)) return false;
  const Matrix<W> xt = transposed(x), packed_dq = packed(dq), packed_dk = packed(dk), packed_dv = packed(dv);
  multiply(dx, packed_dq, w.dq);
  multiply(dx, packed_dk, w.dk);
  multiply(dx, packed_dv, w.dv);
  multiply(g.q, transposed(packed_dq), xt);
  multiply(g.k, transposed(packed_dk), xt);
  multiply(g.v, transposed(packed_dv), xt);
  multiply(g.o, transposed(packed(o)), transposed(dy));
  return true;
}

// dx from x and dy, the gradient of the middle residual, for the sequences of `inner_forward` and in its two loops.
template <class W>
WARP_INLINE AttentionGradients<W> inner_attention_backward(const typename W::Element* x, const typename W::Element* dy,
                                                           typename W::Element* dx, const typename W::Element* weights,
                                                           unsigned first, unsigned count, unsigned step, float eps) {
  const AttentionBackwardWeights<W> w(weights);
  AttentionGradients<W> g;
  const auto fast = [&](const Places<W>& at) {
    const Matrix<W> d = load_rows<W>(dy, at);
    const Normalised<W> n = normalised<W>(load_rows<W>(x, at), eps);
    Sums<W> gradient;
    if (!attention_backward<W, false>(g, gradient, with_ones<W>(n.x), d, w)) return false;
    store_rows<W>(dx, at, input_gradient(d, gradient, n));
    return true;
  };
  const auto exact = [&](const Places<W>& at) {
    const Matrix<W> d = load_rows<W>(dy, at);
    const Normalised<W> n = normalised<W>(load_rows<W>(x, at), eps);
    const Matrix<W> normal = with_ones<W>(n.x);
    if (needs_no_maxima(normal, w)) return;
    Sums<W> gradient;
    attention_backward<W, true>(g, gradient, normal, d, w);
    store_rows<W>(dx, at, input_gradient(d, gradient, n));
  };
  for_sequences<W>(first, count, step, fast, exact);
  return g;
}
