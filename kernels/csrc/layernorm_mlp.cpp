// LayerNorm and the two linear layers of an MLP, forward and backward, by tasks of ROWS rows that stay in the caches
// between the products. The hidden columns before GELU are kept; the backward takes the rest from x again.
#include "norm.h"

namespace {

struct Mlp {
  const LayerNormMlp& m;
  const int D = m.width, F = m.hidden, ds = padded(D), fs = padded(F);
  const float *gamma = m.weights[0], *beta = m.weights[1], *w1 = m.weights[2], *b1 = m.weights[3];
  const float *w2 = m.weights[4], *b2 = m.weights[5];
  const int64_t tasks = (m.rows + ROWS - 1) / ROWS;

  Rows tokens(const void* p) const { return {const_cast<void*>(p), D, m.bf16 != 0}; }
  Rows results(const void* p) const { return {const_cast<void*>(p), D, m.residual ? m.bf16 != 0 : m.bf16_kept != 0}; }
  Rows columns(const void* p) const { return {const_cast<void*>(p), F, m.bf16_kept != 0}; }

  int forward(const void* x_, void* y_, void* hidden_) const {
    const Rows x = tokens(x_), y = results(y_), hidden = columns(hidden_);
    Packed up(D, F), down(F, D);
    if (!up.there() || !down.there()) return TITN_NO_MEMORY;
    up.pack_forward(m.parallel_for, w1, b1, gamma, beta);
    down.pack_forward(m.parallel_for, w2, b2, nullptr, nullptr);
    Failure failure;
    parallel(m.parallel_for, tasks, [&](int64_t begin, int64_t end) {
      Scratch<float> x_spare(ROWS * ds), y_spare(ROWS * ds), normed(ROWS * ds), a_spare(ROWS * fs), active(ROWS * fs);
      if (!x_spare || !y_spare || !normed || !a_spare || !active) return failure.raise();
      for (int64_t row = begin * ROWS; row < m.rows && row < end * ROWS; row += ROWS) {
        const int count = (int)smaller_of(ROWS, m.rows - row);
        const float* from = x.read(row, count, x_spare);
        normalise_rows(count, D, ds, from, normed, m.eps);
        if (m.bf16_kept || !hidden.p) {
          up.times(count, normed, ds, [&](int r, int c, V v) { store(active + r * fs + c, v + load(up.bias + c)); });
          if (m.bf16_kept) round_rows((int64_t)count * fs, active);
          if (hidden.p) hidden.place(row, count, active);
          for (int i = 0; i < count * fs; i += VL) store(active + i, gelu<true>(load(active + i)));
        } else {
          float* before = hidden.target(row, count, a_spare);
          up.times(count, normed, ds, [&](int r, int c, V v) {
            v += load(up.bias + c);
            store(before + r * fs + c, v);
            store(active + r * fs + c, gelu<true>(v));
          });
          hidden.written(row, count, before);
        }
        float* to = y.target(row, count, y_spare);
        const float* base = m.residual ? from : nullptr;
        down.times(count, active, fs, [&](int r, int c, V v) {
          v += load(down.bias + c);
          store(to + r * ds + c, base ? v + load(base + r * ds + c) : v);
        });
        y.written(row, count, to);
      }
    });
    return failure.result();
  }

  int backward(const void* x_, const void* hidden_, const void* dy_, void* dx_, float* const* g) const {
    const Rows x = tokens(x_), dx = tokens(dx_), hidden = columns(hidden_), dy = results(dy_);
    const Rounds rounds(m.rows, ROWS, m.threads);
    const int64_t most = rounds.most();
    const bool copied = !dy.fit(ROWS);  // then the gradient of w2 takes dy from a copy
    Packed up(F, D), down(D, F);
    Panels normed(most, rounds.pass, D), active(most, rounds.pass, F);
    Scratch<float> da(most * fs), dy_copy(copied ? most * ds : 0), dw1(ds == D ? 0 : (int64_t)F * ds);
    Scratch<float> dw2(fs == F ? 0 : (int64_t)D * fs), db1(F), db2(D);
    if (!up.there() || !down.there() || !normed.p || !active.p || !da || !dy_copy || !dw1 || !dw2 || !db1 || !db2)
      return TITN_NO_MEMORY;
    float *at1 = ds == D ? g[2] : dw1.p, *at2 = fs == F ? g[4] : dw2.p;
    up.pack_backward(m.parallel_for, w1, gamma);
    down.pack_backward(m.parallel_for, w2, nullptr);
    Failure failure;
    int64_t start = 0;
    do {
      const int64_t left = smaller_of(rounds.round, m.rows - start);
      normed.rows = active.rows = left;
      rounds.tasks(m.parallel_for, left, [&](int64_t begin, int64_t end) {
        Scratch<float> x_spare(ROWS * ds), dx_spare(ROWS * ds), dy_spare(ROWS * ds), dn(ROWS * ds);
        Scratch<float> a_spare(ROWS * fs), da_spare(ROWS * fs);
        if (!x_spare || !dx_spare || !dy_spare || !dn || !a_spare || !da_spare) return failure.raise();
        for (int64_t row = begin; row < end; row += ROWS) {
          const int count = (int)smaller_of(ROWS, end - row);
          const float *from = x.read(start + row, count, x_spare), *d = dy.read(start + row, count, dy_spare);
          const float* before = hidden.read(start + row, count, a_spare);
          if (copied) std::memcpy(dy_copy + row * ds, d, (int64_t)count * ds * sizeof(float));
          const bool whole = count % MR == 0;
          float* back = whole ? da + row * fs : da_spare.p;
          const Panels::Place h = active.place(row), n = normed.place(row);
          down.times(count, d, ds, [&](int r, int c, V v) {
            const Gelu e = gelu_and_slope<true>(load(before + r * fs + c));
            h.put(r, c, e.value);
            store(back + r * fs + c, v * e.slope);
          });
          if (!whole) std::memcpy(da + row * fs, back, (int64_t)count * fs * sizeof(float));
          up.times(count, back, fs, [&](int r, int c, V v) { store(dn + r * ds + c, v); });
          float* to = dx.target(start + row, count, dx_spare);
          for (int r = 0; r < count; ++r) {
            const Statistics s = normalise_row(D, from + r * ds, m.eps, [&](int i, V v) { n.put(r, i, v); });
            const float* base = m.residual ? d + r * ds : nullptr;
            normalise_row_backward(D, dn + r * ds, from + r * ds, s, base, to + r * ds);
          }
          dx.written(start + row, count, to);
        }
      });
      const float* dys = copied ? dy_copy.p : dy.address(start);
      const bool add = start > 0;
      if (failure.raised || !weight_gradients<2>(m.parallel_for, {{da, fs, F, &normed, at1, db1, add},
                                                                  {dys, ds, D, &active, at2, db2, add}}))
        return TITN_NO_MEMORY;
      start += left;
    } while (start < m.rows);
    Unfolding{F, D, ds, w1, gamma, beta, at1, db1, g[0], g[1], g[2]}.all(m.parallel_for);
    copy_columns(D, F, at2, g[4]);
    if (g[3]) std::memcpy(g[3], db1, F * sizeof(float));
    if (g[5]) std::memcpy(g[5], db2, D * sizeof(float));
    return TITN_OK;
  }
};

}  // namespace

extern "C" int PATH(layernorm_mlp_forward)(const LayerNormMlp* m, const void* x, void* y, void* hidden) {
  return Mlp{*m}.forward(x, y, hidden);
}
extern "C" int PATH(layernorm_mlp_backward)(
    const LayerNormMlp* m, const void* x, const void* hidden, const void* dy, void* dx, float* const* gradients) {
  return Mlp{*m}.backward(x, hidden, dy, dx, gradients);
}
