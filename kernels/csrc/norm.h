// LayerNorm over rows of D numbers, and what folding its affine part into the linear layer behind it takes.
#pragma once
#include "products.h"

namespace {

struct Statistics {
  float mean, rstd;
};

OWN Statistics statistics(int D, const float* x, float eps) {
  V sum{}, squares{};
  for (int i = 0; i < D; i += VL) sum += first(load(x + i), D - i);
  const float mean = sum_lanes(sum) / (float)D;
  for (int i = 0; i < D; i += VL) {
    const V d = first(load(x + i) - mean, D - i);
    squares += d * d;
  }
  return {mean, 1.f / __builtin_sqrtf(sum_lanes(squares) / (float)D + eps)};
}
// LayerNorm without its affine part; put(i, v): the VL numbers from i, zeros behind D
template <class Put> ALWAYS Statistics normalise_row(int D, const float* x, float eps, const Put& put) {
  const Statistics s = statistics(D, x, eps);
  for (int i = 0; i < D; i += VL) put(i, first((load(x + i) - s.mean) * s.rstd, D - i));
  return s;
}
OWN void normalise_rows(int count, int D, int stride, const float* x, float* n, float eps) {
  for (int r = 0; r < count; ++r, x += stride, n += stride)
    normalise_row(D, x, eps, [&](int i, V v) { store(n + i, v); });
}
// dx = base + rstd (dn - mean(dn) - n mean(dn n)); base may be null
OWN void normalise_row_backward(int D, const float* dn, const float* x, Statistics s, const float* base, float* dx) {
  V a{}, b{};
  for (int i = 0; i < D; i += VL) {
    const V d = first(load(dn + i), D - i), n = (load(x + i) - s.mean) * s.rstd;
    a += d, b += d * first(n, D - i);
  }
  const float ma = sum_lanes(a) / (float)D, mb = sum_lanes(b) / (float)D;
  for (int i = 0; i < D; i += VL) {
    const V n = (load(x + i) - s.mean) * s.rstd, d = (load(dn + i) - ma - n * mb) * s.rstd;
    store(dx + i, base ? load(base + i) + d : d);
  }
}

// The gradients of a linear layer w (gamma x^ + beta) + b [outputs][width] and of its norm from A = dy^T x^, at `stride`,
// and a = sum dy: dW = A gamma + a beta^T, dgamma = sum_o w A, dbeta = w^T a. A may be dw itself.
struct Unfolding {
  int outputs, width, stride;
  const float *w, *gamma, *beta, *A, *a;
  float *dgamma, *dbeta, *dw;

  OWN void columns(int c, int n) const {
    V by_gamma{}, by_beta{};
    const V scale = gamma ? some(gamma + c, n) : splat(1.f), shift = beta ? some(beta + c, n) : V{};
    for (int o = 0; o < outputs; ++o) {
      const V raw = load(A + (int64_t)o * stride + c), weight = some(w + (int64_t)o * width + c, n);
      by_gamma += weight * raw;
      by_beta += weight * a[o];
      store_part(dw + (int64_t)o * width + c, beta ? raw * scale + shift * a[o] : raw * scale, n);
    }
    if (dgamma) store_part(dgamma + c, by_gamma, n);
    if (dbeta) store_part(dbeta + c, by_beta, n);
  }
  void all(ParallelFor pool) const {
    parallel(pool, (width + VL - 1) / VL, [&](int64_t begin, int64_t end) {
      for (int c = (int)begin * VL; c < width && c < end * VL; c += VL) columns(c, width - c);
    });
  }
};

}  // namespace
