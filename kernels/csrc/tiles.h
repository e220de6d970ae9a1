// Linear layers on VL sequences side by side: a matrix [T][N] of vectors, each lane a sequence of its own.
#pragma once
#include "vec.h"

namespace {

constexpr int TO = 3, TT = 4;  // outputs and tokens of a tile: 12 sums, 3 weights and a token in 16 registers

// y[t][o] (+)= b[o] + sum_k w[k][o] x[t][k]
template <int O, int T, bool ADD>
ALWAYS void linear_tile(int K, const V* x, int xs, const float* w, const float* b, V* y, int ys) {
  V sum[O][T];
  UNROLL for (int i = 0; i < O; ++i) UNROLL for (int j = 0; j < T; ++j) {
    sum[i][j] = b ? splat(b[i]) : V{};
    if constexpr (ADD) sum[i][j] += y[j * ys + i];
  }
  UNROLL_4 for (int k = 0; k < K; ++k) {
    V wk[O];
    UNROLL for (int i = 0; i < O; ++i) wk[i] = splat(w[k * O + i]);
    UNROLL for (int j = 0; j < T; ++j) {
      const V xk = x[j * xs + k];
      UNROLL for (int i = 0; i < O; ++i) sum[i][j] += wk[i] * xk;
    }
  }
  UNROLL for (int i = 0; i < O; ++i) UNROLL for (int j = 0; j < T; ++j) y[j * ys + i] = sum[i][j];
}
template <int O, bool ADD>
ALWAYS void linear_columns(int T, int K, const V* x, int xs, const float* w, const float* b, V* y, int ys) {
  int t = 0;
  for (; t + TT <= T; t += TT) linear_tile<O, TT, ADD>(K, x + t * xs, xs, w, b, y + t * ys, ys);
  for (; t < T; ++t) linear_tile<O, 1, ADD>(K, x + t * xs, xs, w, b, y + t * ys, ys);
}
// y[t][o] (+)= b[o] + sum_k W[o][k] x[t][k]; w holds W as [O / TO][K][TO], the rows that TO leaves over one by one
template <bool ADD>
OWN void linear(
    int T, int O, int K, const V* x, int xs, const float* w, const float* b, V* y, int ys) {
  int o = 0;
  for (; o + TO <= O; o += TO) linear_columns<TO, ADD>(T, K, x, xs, w + o * K, b ? b + o : nullptr, y + o, ys);
  for (; o < O; ++o) linear_columns<1, ADD>(T, K, x, xs, w + o * K, b ? b + o : nullptr, y + o, ys);
}
// where W[o][k] of O x K lies among the tiles of `linear`
ALWAYS int packed_at(int O, int K, int o, int k) {
  return o < O / TO * TO ? (o / TO * K + k) * TO + o % TO : o * K + k;
}

template <int O, int N> ALWAYS void outer_tile(int T, const V* dy, int ys, const V* x, int xs, V* g, int gs) {
  V sum[O][N];
  UNROLL for (int i = 0; i < O; ++i) UNROLL for (int j = 0; j < N; ++j) sum[i][j] = g[i * gs + j];
  UNROLL_4 for (int t = 0; t < T; ++t) {
    V d[O];
    UNROLL for (int i = 0; i < O; ++i) d[i] = dy[t * ys + i];
    UNROLL for (int j = 0; j < N; ++j) {
      const V xt = x[t * xs + j];
      UNROLL for (int i = 0; i < O; ++i) sum[i][j] += d[i] * xt;
    }
  }
  UNROLL for (int i = 0; i < O; ++i) UNROLL for (int j = 0; j < N; ++j) g[i * gs + j] = sum[i][j];
}
template <int O> ALWAYS void outer_rows(int T, int K, const V* dy, int ys, const V* x, int xs, V* g, int gs) {
  int k = 0;
  for (; k + TT <= K; k += TT) outer_tile<O, TT>(T, dy, ys, x + k, xs, g + k, gs);
  for (; k < K; ++k) outer_tile<O, 1>(T, dy, ys, x + k, xs, g + k, gs);
}
// g[o][k] += sum_t dy[t][o] x[t][k]: a linear layer's weight gradient
OWN void outer(int T, int O, int K, const V* dy, int ys, const V* x, int xs, V* g, int gs) {
  int o = 0;
  for (; o + TO <= O; o += TO) outer_rows<TO>(T, K, dy + o, ys, x, xs, g + o * gs, gs);
  for (; o < O; ++o) outer_rows<1>(T, K, dy + o, ys, x, xs, g + o * gs, gs);
}
// g[o] += sum_t dy[t][o]: its bias gradient
OWN void column_sums(int T, int O, const V* dy, int ys, V* g) {
  for (int o = 0; o < O; ++o) {
    V s = g[o];
    for (int t = 0; t < T; ++t) s += dy[t * ys + o];
    g[o] = s;
  }
}

// LayerNorm without its affine part over rows x [T][C]
OWN void normalise(int T, int C, const V* x, V* n, V* rstd, float eps) {
  const float share = 1.f / (float)C;
  for (int t = 0; t < T; ++t) {
    const V* p = x + t * C;
    V mean{}, variance{};
    for (int c = 0; c < C; ++c) mean += p[c];
    mean = mean * share;
    for (int c = 0; c < C; ++c) {
      const V d = p[c] - mean;
      variance += d * d;
    }
    const V r = 1.f / square_root(variance * share + eps);
    if (rstd) rstd[t] = r;
    for (int c = 0; c < C; ++c) n[t * C + c] = (p[c] - mean) * r;
  }
}
// d[t] += rstd (dn - mean(dn) - n mean(dn n))
OWN void normalise_backward(int T, int C, const V* dn, const V* n, const V* rstd, V* d) {
  const float share = 1.f / (float)C;
  for (int t = 0; t < T; ++t) {
    V a{}, b{};
    for (int c = 0; c < C; ++c) {
      a += dn[t * C + c];
      b += dn[t * C + c] * n[t * C + c];
    }
    a = a * share, b = b * share;
    for (int c = 0; c < C; ++c) d[t * C + c] += rstd[t] * (dn[t * C + c] - a - n[t * C + c] * b);
  }
}

// rows [VL][N] of memory to N vectors, and back
template <class E> OWN void gather_rows(int N, const E* p, V* v) {
  int i = 0;
  for (; i + VL <= N; i += VL) {
    V t[VL];
    UNROLL for (int r = 0; r < VL; ++r) t[r] = load(p + r * N + i);
    transpose(t);
    UNROLL for (int r = 0; r < VL; ++r) v[i + r] = t[r];
  }
  for (; i < N; ++i)
    for (int r = 0; r < VL; ++r) v[i][r] = load_one(p + r * N + i);
}
template <class E> OWN void scatter_rows(int N, E* p, const V* v) {
  int i = 0;
  for (; i + VL <= N; i += VL) {
    V t[VL];
    UNROLL for (int r = 0; r < VL; ++r) t[r] = v[i + r];
    transpose(t);
    UNROLL for (int r = 0; r < VL; ++r) store(p + r * N + i, t[r]);
  }
  for (; i < N; ++i)
    for (int r = 0; r < VL; ++r) store_one(p + r * N + i, v[i][r]);
}

}  // namespace
