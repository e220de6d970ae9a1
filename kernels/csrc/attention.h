// Softmax attention within one image: T tokens, one head of E channels at a time, its scores in the first cache.
#pragma once
#include "products.h"

namespace {

constexpr float LOG2E = 1.44269504088896f;
constexpr int LITTLE_ROWS = 3, LITTLE_VECTORS = 3;

template <int R, int C>
ALWAYS void little_tile(int N, int K, const float* a, int ai, int ak, const float* b, int bs, float* out, int os) {
  V sum[R][C];
  UNROLL for (int i = 0; i < R; ++i) UNROLL for (int v = 0; v < C; ++v) sum[i][v] = V{};
  UNROLL_4 for (int k = 0; k < K; ++k) {
    V row[C];
    UNROLL for (int v = 0; v < C; ++v) row[v] = load(b + k * bs + v * VL);
    UNROLL for (int i = 0; i < R; ++i) {
      const V s = splat(a[i * ai + k * ak]);
      UNROLL for (int v = 0; v < C; ++v) sum[i][v] += s * row[v];
    }
  }
  UNROLL for (int i = 0; i < R; ++i) UNROLL for (int v = 0; v < C; ++v)
    store_part(out + i * os + v * VL, sum[i][v], N - v * VL);
}
template <int C>
ALWAYS void little_rows(int M, int N, int K, const float* a, int ai, int ak, const float* b, int bs, float* out, int os) {
  int i = 0;
  for (; i + LITTLE_ROWS <= M; i += LITTLE_ROWS)
    little_tile<LITTLE_ROWS, C>(N, K, a + i * ai, ai, ak, b, bs, out + i * os, os);
  for (; i < M; ++i) little_tile<1, C>(N, K, a + i * ai, ai, ak, b, bs, out + i * os, os);
}
// out[i os + j] = sum over k < K of a[i ai + k ak] b[k bs + j], i < M, j < N; reads b in whole vectors
OWN void little(int M, int N, int K, const float* a, int ai, int ak, const float* b, int bs, float* out, int os) {
  while (N > (LITTLE_VECTORS - 1) * VL) {
    little_rows<LITTLE_VECTORS>(M, N, K, a, ai, ak, b, bs, out, os);
    N -= LITTLE_VECTORS * VL, b += LITTLE_VECTORS * VL, out += LITTLE_VECTORS * VL;
  }
  if (N > VL) little_rows<2>(M, N, K, a, ai, ak, b, bs, out, os);
  else if (N > 0) little_rows<1>(M, N, K, a, ai, ak, b, bs, out, os);
}

// One head of one image. q, k, v and the gradients of them have rows of `stride` numbers. Rows are read in whole vectors:
// up to VL - 1 numbers behind the last one must be there.
struct Attention {
  int T, E, stride;

  int keys() const { return (T + VL - 1) / VL * VL; }      // T and E in whole vectors
  int channels() const { return (E + VL - 1) / VL * VL; }
  int64_t scratch() const { return (int64_t)keys() * (channels() + 2 * T); }

  // [T] rows to columns [channels()][keys()], zeros behind T
  OWN void transposed(const float* rows, float* to) const {
    const int ks = keys();
    for (int j = 0; j < T; j += VL)
      for (int d = 0; d < E; d += VL) {
        V t[VL];
        UNROLL for (int r = 0; r < VL; ++r) t[r] = j + r < T ? load(rows + (int64_t)(j + r) * stride + d) : V{};
        transpose(t);
        UNROLL for (int r = 0; r < VL; ++r) store(to + (d + r) * ks + j, t[r]);
      }
  }
  // p[T][keys()] = softmax(q k^T / sqrt(E)); `columns` is scratch
  OWN void weights(const float* q, const float* k, float* columns, float* p) const {
    const int ks = keys();
    transposed(k, columns);
    little(T, ks, E, q, stride, 1, columns, ks, p, ks);
    const float scale = LOG2E / __builtin_sqrtf((float)E);
    for (int i = 0; i < T; ++i) {
      float* row = p + i * ks;
      V most = splat(-3e38f), sum{};
      for (int j = 0; j < T; j += VL) {
        const V s = first(load(row + j) * scale, T - j, splat(-3e38f));
        most = larger(most, s);
        store(row + j, s);
      }
      const float top = largest_lane(most);
      for (int j = 0; j < T; j += VL) {
        const V e = exp2<true>(load(row + j) - top);
        sum += e;
        store(row + j, e);
      }
      const float share = 1.f / sum_lanes(sum);
      for (int j = 0; j < T; j += VL) store(row + j, load(row + j) * share);
    }
  }
  // o, rows of `os` numbers
  void forward(const float* q, const float* k, const float* v, float* o, int os, float* scratch) const {
    const int ks = keys();
    float* p = scratch + ks * channels();
    weights(q, k, scratch, p);
    little(T, E, T, p, ks, 1, v, stride, o, os);
  }
  // o again and the gradients of q, k and v from that of o, rows of `os` numbers both
  void backward(const float* q, const float* k, const float* v, const float* d_o, float* o, int os, float* dq, float* dk,
                float* dv, float* scratch) const {
    const int ks = keys();
    float *p = scratch + ks * channels(), *ds = p + ks * T;
    weights(q, k, scratch, p);
    little(T, E, T, p, ks, 1, v, stride, o, os);
    transposed(v, scratch);
    little(T, ks, E, d_o, os, 1, scratch, ks, ds, ks);
    const float scale = 1.f / __builtin_sqrtf((float)E);
    for (int i = 0; i < T; ++i) {
      V sum{};
      for (int j = i * ks; j < (i + 1) * ks; j += VL) sum += load(p + j) * load(ds + j);
      const float delta = sum_lanes(sum);
      for (int j = i * ks; j < (i + 1) * ks; j += VL) store(ds + j, load(p + j) * (load(ds + j) - delta) * scale);
    }
    little(T, E, T, ds, ks, 1, k, stride, dq, stride);
    little(T, E, T, ds, 1, ks, q, stride, dk, stride);
    little(T, E, T, p, 1, ks, d_o, os, dv, stride);
  }
};

}  // namespace
