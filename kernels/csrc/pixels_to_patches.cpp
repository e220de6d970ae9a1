// The pixels of every patch, normalised, flattened and projected, added to the patch's row, forward and backward, by tasks
// of ROWS patches. VL patches are normalised side by side, one in each lane.
#include "norm.h"
#include "tiles.h"

namespace {

struct Projection {
  const PixelsToPatches& m;
  const int N = m.patches, T = m.tokens, L = m.pixels, C = m.channels, K = L * C, D = m.width;
  const int ks = padded(K), ds = padded(D);
  const float *gamma = m.weights[0], *beta = m.weights[1], *w = m.weights[2], *b = m.weights[3];
  const int64_t n = m.images * N;
  static_assert(ROWS % VL == 0, "a task has whole groups of patches");

  // of a patch in patches [B, T, D]
  int64_t token(int64_t row) const { return row / N * T + 1 + row % N; }
  Rows rows_of(const void* p) const { return {const_cast<void*>(p), D, m.bf16_patches != 0}; }
  // `count` rows of pixels as dense float32: as they lie, if they are whole groups, or in `spare`, zeros behind them
  const float* pixels_of(const void* p, int64_t row, int count, float* spare) const {
    if (!m.bf16_pixels && count % VL == 0) return (const float*)p + row * K;
    if (m.bf16_pixels)
      for (int i = 0; i < count * K; ++i) spare[i] = load_one((const bf16*)p + row * K + i);
    else
      std::memcpy(spare, (const float*)p + row * K, (int64_t)count * K * sizeof(float));
    std::memset(spare + (int64_t)count * K, 0, (int64_t)(ROWS - count) * K * sizeof(float));
    return spare;
  }
  // a vector [C] once for every pixel
  void repeat(const float* from, float* to) const {
    for (int i = 0; i < K; ++i) to[i] = from[i % C];
  }
  // dense rows from `dense` at stride ks
  void widen(const float* dense, float* rows) const {
    for (int r = 0; r < ROWS; ++r) std::memcpy(rows + (int64_t)r * ks, dense + (int64_t)r * K, K * sizeof(float));
  }

  int forward(const void* pixels, const void* patches_, void* out_) const {
    const Rows patches = rows_of(patches_), out = rows_of(out_);
    Packed projection(K, D);
    Scratch<float> scale(K), shift(K);
    if (!projection.there() || !scale || !shift) return TITN_NO_MEMORY;
    repeat(gamma, scale), repeat(beta, shift);
    projection.pack_forward(m.parallel_for, w, b, scale, shift);
    const int64_t bytes = (int64_t)D * (m.bf16_patches ? 2 : 4);
    for (int64_t image = 0; image < m.images; ++image)  // the rows without pixels
      for (int64_t t = 0; t < T; t = t == 0 ? N + 1 : t + 1)
        std::memcpy((char*)out_ + (image * T + t) * bytes, (const char*)patches_ + (image * T + t) * bytes, bytes);
    Failure failure;
    parallel(m.parallel_for, (n + ROWS - 1) / ROWS, [&](int64_t begin, int64_t end) {
      Scratch<float> spare(ROWS * K), dense(ROWS * K), normed(ROWS * ks), token_row(ds), rows(ROWS * ds);
      Scratch<V> x(K), v(K);
      if (!spare || !dense || !normed || !token_row || !rows || !x || !v) return failure.raise();
      for (int64_t row = begin * ROWS; row < n && row < end * ROWS; row += ROWS) {
        const int count = (int)smaller_of(ROWS, n - row);
        const float* from = pixels_of(pixels, row, count, spare);
        float* to = ks == K ? normed : dense;
        for (int r = 0; r < count; r += VL) {
          gather_rows(K, from + r * K, x.p);
          normalise(L, C, x, v, nullptr, m.eps);
          scatter_rows(K, to + r * K, v.p);
        }
        if (ks != K) widen(dense, normed);
        projection.times(count, normed, ks, [&](int r, int c, V v) { store(rows + r * ds + c, v + load(projection.bias + c)); });
        for (int r = 0; r < count; ++r) {
          patches.copy_from(token(row + r), 1, token_row);
          for (int c = 0; c < D; c += VL) store(rows + r * ds + c, load(rows + r * ds + c) + load(token_row + c));
          out.place(token(row + r), 1, rows + r * ds);
        }
      }
    });
    return failure.result();
  }

  int backward(const void* pixels, const void* dy_, void* dpixels, float* const* g) const {
    const Rows dy = rows_of(dy_);
    const Rounds rounds(n, ROWS, m.threads);
    const int64_t most = rounds.most();
    Packed projection(D, K);
    Panels normed(most, rounds.pass, K);
    Scratch<float> scale(K), shift(K), dr((most + MR) * ds), dw(ks == K ? 0 : (int64_t)D * ks), db(D);
    Scratch<float> by_scale(K), by_shift(K);
    if (!projection.there() || !normed.p || !scale || !shift || !dr || !dw || !db || !by_scale || !by_shift)
      return TITN_NO_MEMORY;
    float* gradient = ks == K ? g[2] : dw.p;
    repeat(gamma, scale), repeat(beta, shift);
    projection.pack_backward(m.parallel_for, w, scale);
    Failure failure;
    int64_t start = 0;
    do {
      const int64_t left = smaller_of(rounds.round, n - start);
      normed.rows = left;
      rounds.tasks(m.parallel_for, left, [&](int64_t begin, int64_t end) {
        Scratch<float> spare(ROWS * K), dense(ROWS * K), back(ROWS * ks), result(ROWS * K), incoming(ROWS * ds);
        Scratch<V> x(K), v(K), d(K), dx(K), rstd(L);
        if (!spare || !dense || !back || !result || !incoming || !x || !v || !d || !dx || !rstd) return failure.raise();
        for (int64_t row = begin; row < end; row += ROWS) {
          const int count = (int)smaller_of(ROWS, end - row);
          const float* from = pixels_of(pixels, start + row, count, spare);
          for (int r = 0; r < count; ++r) dy.copy_from(token(start + row + r), 1, incoming + r * ds);
          std::memcpy(dr + row * ds, incoming, (int64_t)count * ds * sizeof(float));
          projection.times(count, incoming, ds, [&](int r, int c, V v) { store(back + r * ks + c, v); });
          if (ks != K)
            for (int r = 1; r < count; ++r) std::memmove(back + r * K, back + r * ks, K * sizeof(float));
          const Panels::Place to = normed.place(row);
          for (int r = 0; r < count; r += VL) {
            gather_rows(K, from + r * K, x.p);
            normalise(L, C, x, v, rstd, m.eps);
            scatter_rows(K, dense.p, v.p);
            for (int i = 0; i < VL && r + i < count; ++i) {
              int c = 0;
              for (; c + VL <= K; c += VL) to.put(r + i, c, load(dense + i * K + c));
              if (c < K) to.put(r + i, c, some(dense + i * K + c, K - c));
            }
            gather_rows(K, back + r * K, d.p);
            for (int i = 0; i < K; ++i) dx[i] = V{};
            normalise_backward(L, C, d, v, rstd, dx);
            scatter_rows(K, result + r * K, dx.p);
          }
          if (m.bf16_pixels)
            for (int i = 0; i < count * K; ++i) store_one((bf16*)dpixels + (start + row) * K + i, result[i]);
          else
            std::memcpy((float*)dpixels + (start + row) * K, result, (int64_t)count * K * sizeof(float));
        }
      });
      if (failure.raised || !weight_gradients<1>(m.parallel_for, {{dr, ds, D, &normed, gradient, db, start > 0}}))
        return TITN_NO_MEMORY;
      start += left;
    } while (start < n);
    Unfolding{D, K, ks, w, scale, shift, gradient, db, by_scale, by_shift, g[2]}.all(m.parallel_for);
    for (int c = 0; c < C; ++c) {
      g[0][c] = g[1][c] = 0.f;
      for (int i = c; i < K; i += C) g[0][c] += by_scale[i], g[1][c] += by_shift[i];
    }
    if (g[3]) std::memcpy(g[3], db, D * sizeof(float));
    return TITN_OK;
  }
};

}  // namespace

extern "C" int PATH(pixels_to_patches_forward)(
    const PixelsToPatches* m, const void* pixels, const void* patches, void* out) {
  return Projection{*m}.forward(pixels, patches, out);
}
extern "C" int PATH(pixels_to_patches_backward)(
    const PixelsToPatches* m, const void* pixels, const void* dy, void* dpixels, float* const* gradients) {
  return Projection{*m}.backward(pixels, dy, dpixels, gradients);
}
