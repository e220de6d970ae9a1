// The attention half of the patch-level block, forward and backward, by tasks of whole images with at least ROWS tokens.
// q, k and v are kept; the backward takes the rest from x again.
#include "attention.h"
#include "norm.h"

namespace {

struct Half {
  const OuterAttention& m;
  const int T = m.length, D = m.width, E = m.width / m.heads, ds = padded(D), qs = padded(3 * D);
  const float *gamma = m.weights[0], *beta = m.weights[1], *wqkv = m.weights[2], *bqkv = m.weights[3];
  const float *wproj = m.weights[4], *bproj = m.weights[5];
  const Attention head{T, E, qs};
  const int64_t n = m.images * T;
  const int rows = task_rows(), room = (rows + MR - 1) / MR * MR;  // tokens of a task, and those of whole tiles
  const int64_t tasks = (n + rows - 1) / rows;

  // of whole images, and where twice as many as needed allow it of whole tiles
  int task_rows() const {
    const int least = (ROWS + T - 1) / T;
    for (int images = least; images <= 2 * least; ++images)
      if (images * T % MR == 0) return images * T;
    return least * T;
  }
  Rows tokens(const void* p) const { return {const_cast<void*>(p), D, m.bf16 != 0}; }
  Rows results(const void* p) const { return {const_cast<void*>(p), D, m.residual ? m.bf16 != 0 : m.bf16_kept != 0}; }
  Rows triples(const void* p) const { return {const_cast<void*>(p), 3 * D, m.bf16_kept != 0}; }

  int forward(const void* x_, void* y_, void* qkv_) const {
    const Rows x = tokens(x_), y = results(y_), kept = triples(qkv_);
    Packed in(D, 3 * D), out(D, D);
    if (!in.there() || !out.there()) return TITN_NO_MEMORY;
    in.pack_forward(m.parallel_for, wqkv, bqkv, gamma, beta);
    out.pack_forward(m.parallel_for, wproj, bproj, nullptr, nullptr);
    Failure failure;
    parallel(m.parallel_for, tasks, [&](int64_t begin, int64_t end) {
      Scratch<float> x_spare(room * ds), y_spare(room * ds), normed(room * ds), qkv(room * qs + VL), o(room * ds);
      Scratch<float> scratch(head.scratch());
      if (!x_spare || !y_spare || !normed || !qkv || !o || !scratch) return failure.raise();
      for (int64_t row = begin * rows; row < n && row < end * rows; row += rows) {
        const int count = (int)smaller_of(rows, n - row);
        const float* from = x.read(row, count, x_spare);
        normalise_rows(count, D, ds, from, normed, m.eps);
        in.times(count, normed, ds, [&](int r, int c, V v) { store(qkv + r * qs + c, v + load(in.bias + c)); });
        if (m.bf16_kept) round_rows((int64_t)count * qs, qkv);
        if (kept.p) kept.place(row, count, qkv);
        for (int t = 0; t < count; t += T)
          for (int h = 0; h < m.heads; ++h) {
            const float* q = qkv + t * qs + h * E;
            head.forward(q, q + D, q + 2 * D, o + t * ds + h * E, ds, scratch);
          }
        float* to = y.target(row, count, y_spare);
        const float* base = m.residual ? from : nullptr;
        out.times(count, o, ds, [&](int r, int c, V v) {
          v += load(out.bias + c);
          store(to + r * ds + c, base ? v + load(base + r * ds + c) : v);
        });
        y.written(row, count, to);
      }
    });
    return failure.result();
  }

  int backward(const void* x_, const void* qkv_, const void* dy_, void* dx_, float* const* g) const {
    const Rows x = tokens(x_), dx = tokens(dx_), kept = triples(qkv_), dy = results(dy_);
    const Rounds rounds(n, rows, m.threads);
    const int64_t most = rounds.most();
    const bool copied = !dy.fit(MR);  // then the gradient of proj takes dy from a copy
    const bool apart = ds != D;       // then gradients of weights have rows of their own
    Packed in(3 * D, D), out(D, D);
    Panels normed(most, rounds.pass, D), mixed(most, rounds.pass, D);
    Scratch<float> dqkv(most * qs), dy_copy(copied ? most * ds : 0), dwqkv(apart ? (int64_t)3 * D * ds : 0);
    Scratch<float> dwproj(apart ? (int64_t)D * ds : 0), dbqkv(3 * D), dbproj(D);
    if (!in.there() || !out.there() || !normed.p || !mixed.p || !dqkv || !dy_copy || !dwqkv || !dwproj || !dbqkv || !dbproj)
      return TITN_NO_MEMORY;
    float *at1 = apart ? dwqkv.p : g[2], *at2 = apart ? dwproj.p : g[4];
    in.pack_backward(m.parallel_for, wqkv, gamma);
    out.pack_backward(m.parallel_for, wproj, nullptr);
    Failure failure;
    int64_t start = 0;
    do {
      const int64_t left = smaller_of(rounds.round, n - start);
      normed.rows = mixed.rows = left;
      rounds.tasks(m.parallel_for, left, [&](int64_t begin, int64_t end) {
        Scratch<float> x_spare(room * ds), dx_spare(room * ds), dy_spare(room * ds), d(room * ds + VL), o(room * ds);
        Scratch<float> qkv_spare(room * qs + VL), dqkv_spare(room * qs), scratch(head.scratch());
        if (!x_spare || !dx_spare || !dy_spare || !d || !o || !qkv_spare || !dqkv_spare || !scratch) return failure.raise();
        for (int64_t row = begin; row < end; row += rows) {
          const int count = (int)smaller_of(rows, end - row);
          const float *from = x.read(start + row, count, x_spare), *incoming = dy.read(start + row, count, dy_spare);
          const float* qkv = kept.address(start + row);
          if (!kept.fit(MR) || E % VL) kept.copy_from(start + row, count, qkv_spare), qkv = qkv_spare;
          if (copied) std::memcpy(dy_copy + row * ds, incoming, (int64_t)count * ds * sizeof(float));
          const bool whole = count % MR == 0;
          float* back = whole ? dqkv + row * qs : dqkv_spare.p;
          const Panels::Place normed_to = normed.place(row), mixed_to = mixed.place(row);
          out.times(count, incoming, ds, [&](int r, int c, V v) { store(d + r * ds + c, v); });
          for (int t = 0; t < count; t += T)
            for (int h = 0; h < m.heads; ++h) {
              const int at = t * qs + h * E, to = t * ds + h * E;
              head.backward(qkv + at, qkv + at + D, qkv + at + 2 * D, d + to, o + to, ds, back + at, back + at + D,
                            back + at + 2 * D, scratch);
            }
          if (!whole) std::memcpy(dqkv + row * qs, back, (int64_t)count * qs * sizeof(float));
          in.times(count, back, qs, [&](int r, int c, V v) { store(d + r * ds + c, v); });
          float* to = dx.target(start + row, count, dx_spare);
          for (int r = 0; r < count; ++r) {
            for (int i = 0; i < D; i += VL) mixed_to.put(r, i, load(o + r * ds + i));
            const Statistics s = normalise_row(D, from + r * ds, m.eps, [&](int i, V v) { normed_to.put(r, i, v); });
            const float* base = m.residual ? incoming + r * ds : nullptr;
            normalise_row_backward(D, d + r * ds, from + r * ds, s, base, to + r * ds);
          }
          dx.written(start + row, count, to);
        }
      });
      const float* dys = copied ? dy_copy.p : dy.address(start);
      const bool add = start > 0;
      if (failure.raised || !weight_gradients<2>(m.parallel_for, {{dqkv, qs, 3 * D, &normed, at1, dbqkv, add},
                                                                  {dys, ds, D, &mixed, at2, dbproj, add}}))
        return TITN_NO_MEMORY;
      start += left;
    } while (start < n);
    Unfolding{3 * D, D, ds, wqkv, gamma, beta, at1, dbqkv, g[0], g[1], g[2]}.all(m.parallel_for);
    copy_columns(D, D, at2, g[4]);
    if (g[3]) std::memcpy(g[3], dbqkv, 3 * D * sizeof(float));
    if (g[5]) std::memcpy(g[5], dbproj, D * sizeof(float));
    return TITN_OK;
  }
};

}  // namespace

extern "C" int PATH(outer_attention_forward)(const OuterAttention* m, const void* x, void* y, void* qkv) {
  return Half{*m}.forward(x, y, qkv);
}
extern "C" int PATH(outer_attention_backward)(
    const OuterAttention* m, const void* x, const void* qkv, const void* dy, void* dx, float* const* gradients) {
  return Half{*m}.backward(x, qkv, dy, dx, gradients);
}
