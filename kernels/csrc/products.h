// Products of matrices in row-major memory. A linear layer's weight is packed into panels of NR columns and meets rows as
// they lie; the gradient of a weight meets panels of its input. All is float32 inside: rows of other storage, or of widths
// that no panel divides, are copied. Tasks depend on sizes alone, so results do not depend on the number of threads.
#pragma once
#include "parallel.h"
#include "vec.h"

namespace {

constexpr int NR = 2 * VL, MR = VL == 16 ? 12 : 6;  // columns and rows of a tile: its sums stay in registers
constexpr int ROWS = 48;    // of a task, at least: the weights are read from afar once for so many
constexpr int DEPTH = 288;  // rows that one pass of a weight's gradient sums, at least
constexpr int AHEAD = 8;    // rows that it fetches before their turn
constexpr int STRIPS = 4;   // of MR outputs each that one pass of it packs: with a panel they fill the first cache
constexpr int GROUP = STRIPS * MR;

ALWAYS int padded(int n) { return (n + NR - 1) / NR * NR; }
ALWAYS int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// n numbers of v, the first ones
ALWAYS void store_part(float* p, V v, int n) {
  if (n >= VL) return store(p, v);
  float lanes[VL];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

// Dense rows of a tensor in memory.
struct Rows {
  void* p;
  int width;
  bool half;  // bfloat16, else float32

  // whether `count` rows serve as they lie, with a whole number of panels and of tiles
  bool fit(int count) const { return !half && width % NR == 0 && count % MR == 0; }
  float* address(int64_t row) const { return (float*)p + row * width; }
  const bf16* address16(int64_t row) const { return (const bf16*)p + row * width; }

  OWN void copy_from(int64_t row, int count, float* to) const {
    const int stride = padded(width);
    for (int i = 0; i < count; ++i) {
      float* t = to + (int64_t)i * stride;
      if (half) {
        const bf16* from = address16(row + i);
        int c = 0;
        for (; c + VL <= width; c += VL) store(t + c, load(from + c));
        for (; c < width; ++c) t[c] = load_one(from + c);
      } else {
        std::memcpy(t, address(row + i), width * sizeof(float));
      }
      for (int c = width; c < stride; ++c) t[c] = 0.f;
    }
  }
  // rows [row, row + count) at stride padded(width): as they lie or in `spare`, which has room for tiles
  const float* read(int64_t row, int count, float* spare) const {
    if (fit(count)) return address(row);
    copy_from(row, count, spare);
    const int whole = (count + MR - 1) / MR * MR, stride = padded(width);
    std::memset(spare + (int64_t)count * stride, 0, (int64_t)(whole - count) * stride * sizeof(float));
    return spare;
  }
  // where to write such rows, which `written` then brings to their place
  float* target(int64_t row, int count, float* spare) const { return fit(count) ? address(row) : spare; }
  void written(int64_t row, int count, const float* from) const {
    if (!fit(count)) place(row, count, from);
  }
  // rows at stride padded(width) to their place
  OWN void place(int64_t row, int count, const float* from) const {
    const int stride = padded(width);
    for (int i = 0; i < count; ++i) {
      const float* f = from + (int64_t)i * stride;
      if (half) {
        bf16* to = const_cast<bf16*>(address16(row + i));
        int c = 0;
        for (; c + VL <= width; c += VL) store(to + c, load(f + c));
        for (; c < width; ++c) store_one(to + c, f[c]);
      } else {
        std::memcpy(address(row + i), f, width * sizeof(float));
      }
    }
  }
};

// the numbers as bfloat16 keeps them
OWN void round_rows(int64_t n, float* p) {
  for (int64_t i = 0; i < n; i += VL) {
    bf16 lanes[VL];
    store(lanes, load(p + i));
    store(p + i, load(lanes));
  }
}

// sums of MR rows a and one panel b: done(i, v, sum) of row i and the panel's vector v
template <class Done>
ALWAYS void tile(int K, const float* a, int64_t row, int64_t step, const float* b, const Done& done) {
  V sum[MR][2];
  UNROLL for (int i = 0; i < MR; ++i) sum[i][0] = sum[i][1] = V{};
  UNROLL_4 for (int k = 0; k < K; ++k) {
    const V b0 = load(b), b1 = load(b + VL);
    UNROLL for (int i = 0; i < MR; ++i) {
      const V s = splat(a[i * row]);
      sum[i][0] += s * b0;
      sum[i][1] += s * b1;
    }
    b += NR, a += step;
  }
  UNROLL for (int i = 0; i < MR; ++i) {
    done(i, 0, sum[i][0]);
    done(i, 1, sum[i][1]);
  }
}

// A matrix in panels [columns / NR][depth][NR], zeros behind its columns.
struct Packed {
  int depth, columns;
  Scratch<float> panels, bias;  // bias: of `pack_forward`, [padded columns]

  Packed(int depth, int columns)
      : depth(depth), columns(columns), panels((int64_t)padded(columns) * depth), bias(padded(columns)) {}
  bool there() const { return panels && bias; }

  // W [columns][depth] times scale [depth], for x W^T; the bias takes up W shift
  void pack_forward(ParallelFor pool, const float* w, const float* b, const float* scale, const float* shift) {
    parallel(pool, padded(columns) / NR, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        float* out = panels + panel * depth * NR;
        for (int half = 0; half < NR; half += VL) forward_columns((int)panel * NR + half, w, b, scale, shift, out + half);
      }
    });
  }
  // W [depth][columns] times scale [columns], for dy W
  void pack_backward(ParallelFor pool, const float* w, const float* scale) {
    parallel(pool, padded(columns) / NR, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        float* out = panels + panel * depth * NR;
        const int n = (int)panel * NR, width = (int)smaller_of(NR, columns - n);
        for (int k = 0; k < depth; ++k, out += NR) {
          const float* from = w + (int64_t)k * columns + n;
          if (width == NR) {
            UNROLL for (int j = 0; j < NR; j += VL)
              store(out + j, scale ? load(from + j) * load(scale + n + j) : load(from + j));
            continue;
          }
          for (int j = 0; j < NR; ++j) out[j] = j < width ? from[j] * (scale ? scale[n + j] : 1.f) : 0.f;
        }
      }
    });
  }

  // done(row, column, v): v the VL columns from there of a [rows][stride] times this; a has whole tiles of rows
  template <class Done> ALWAYS void times(int rows, const float* a, int64_t stride, const Done& done) const {
    for (int n = 0; n < columns; n += NR)
      for (int m = 0; m < rows; m += MR)
        tile(depth, a + m * stride, stride, 1, panels + (int64_t)n * depth, [&](int i, int v, V sum) {
          if (m + i < rows) done(m + i, n + v * VL, sum);
        });
  }

 private:
  OWN void forward_columns(int n, const float* w, const float* b, const float* scale, const float* shift, float* out) {
    V moved{};
    int k = 0;
    for (; k + VL <= depth; k += VL) {
      V t[VL];
      const V s = scale ? load(scale + k) : splat(1.f), z = shift ? load(shift + k) : V{};
      UNROLL for (int r = 0; r < VL; ++r) t[r] = n + r < columns ? load(w + (int64_t)(n + r) * depth + k) : V{};
      transpose(t);
      UNROLL for (int r = 0; r < VL; ++r) {
        if (shift) moved += t[r] * z[r];
        store(out + (k + r) * NR, t[r] * s[r]);
      }
    }
    for (; k < depth; ++k) {
      V t{};
      for (int r = 0; r < VL && n + r < columns; ++r) t[r] = w[(int64_t)(n + r) * depth + k];
      if (shift) moved += t * shift[k];
      store(out + k * NR, scale ? t * scale[k] : t);
    }
    V plain{};
    for (int r = 0; r < VL && b && n + r < columns; ++r) plain[r] = b[n + r];
    store(bias + n, plain + moved);
  }
};

// Rows of the input of a linear layer as the gradient of its weight wants them: those of each pass in panels.
struct Panels {
  const int depth, stride;
  int64_t rows = 0;  // that it holds now
  Scratch<float> p;

  // depth: rows of a pass, which are those of whole tasks
  Panels(int64_t most, int depth, int width) : depth(depth), stride(padded(width)), p(most * padded(width)) {}

  // where the rows of a task go
  struct Place {
    float* p;
    int64_t step;
    ALWAYS void put(int row, int column, V v) const { store(p + row * NR + column / NR * step + column % NR, v); }
  };
  Place place(int64_t row) const {
    const int64_t first = row / depth * depth;
    return {p + first * stride + (row - first) * NR, smaller_of(depth, rows - first) * NR};
  }
};

// The gradient of a weight [outputs][columns] and of its bias: dy [rows][stride] of `outputs` columns, x in panels. To
// `weight` at stride padded(columns); `add`: to what is there.
struct WeightGradient {
  const float* dy;
  int64_t stride;
  int outputs;
  const Panels* x;
  float *weight, *bias;
  bool add;

  static constexpr int PART = 96 / GROUP * GROUP;
  int part() const { return x->stride > 2 * outputs ? GROUP : PART; }  // outputs of a task
  int tasks() const { return (outputs + part() - 1) / part(); }
  int64_t scratch() const { return (int64_t)GROUP * x->depth; }

  // strips of `count` rows from `row` of GROUP columns from m, and their sums
  OWN void pack(int64_t row, int count, int m, float* to, float* sums) const {
    const int width = (int)smaller_of(GROUP, outputs - m);
    for (int k = 0; k < count; ++k) {
      const float* from = dy + (row + k) * stride + m;
      for (int j = 0; j < GROUP; j += 16) __builtin_prefetch(from + AHEAD * stride + j);
      float spare[GROUP];
      if (width < GROUP) {
        for (int j = 0; j < GROUP; ++j) spare[j] = j < width ? from[j] : 0.f;
        from = spare;
      }
      UNROLL for (int j = 0; j < GROUP; j += VL) store(sums + j, load(sums + j) + load(from + j));
      UNROLL for (int s = 0; s < STRIPS; ++s) std::memcpy(to + (s * count + k) * MR, from + s * MR, MR * sizeof(float));
    }
  }
  OWN void run(int task, float* strips) const {
    const int from = task * part(), to = (int)smaller_of(outputs, from + part());
    for (int m = from; m < to; m += GROUP) {
      const int width = (int)smaller_of(GROUP, to - m);
      float sums[GROUP] = {};
      if (add) std::memcpy(sums, bias + m, width * sizeof(float));
      for (int64_t row = 0; row < x->rows; row += x->depth) {
        const int count = (int)smaller_of(x->depth, x->rows - row);
        pack(row, count, m, strips, sums);
        for (int n = 0; n < x->stride; n += NR)
          for (int s = 0; s * MR < width; ++s)
            tile(count, strips + s * count * MR, 1, MR, x->p + row * x->stride + (int64_t)n * count,
                 [&](int i, int v, V sum) {
                   const int output = m + s * MR + i;
                   if (output >= to) return;
                   float* at = weight + (int64_t)output * x->stride + n + v * VL;
                   store(at, add || row ? load(at) + sum : sum);
                 });
      }
      std::memcpy(bias + m, sums, width * sizeof(float));
      if (x->rows == 0) std::memset(weight + (int64_t)m * x->stride, 0, width * x->stride * sizeof(float));
    }
  }
};

// a weight's gradient from padded rows to its own, unless it lies there
ALWAYS void copy_columns(int outputs, int columns, const float* from, float* to) {
  if (from == to) return;
  for (int o = 0; o < outputs; ++o) std::memcpy(to + (int64_t)o * columns, from + (int64_t)o * padded(columns), columns * 4);
}

// all tasks of some weights' gradients; false where memory lacks
template <int N> bool weight_gradients(ParallelFor pool, const WeightGradient (&each)[N]) {
  int tasks = 0;
  for (const WeightGradient& one : each) tasks += one.tasks();
  Failure failure;
  parallel(pool, tasks, [&](int64_t begin, int64_t end) {
    Scratch<float> strips(each[0].scratch());
    if (!strips) return failure.raise();
    for (int64_t task = begin; task < end; ++task) {
      int left = (int)task, which = 0;
      while (left >= each[which].tasks()) left -= each[which++].tasks();
      each[which].run(left, strips);
    }
  });
  return !failure.raised;
}

// A backward works through its rows in rounds: first what each task of `rows` rows does, then the weights' gradients of
// the round, so that what goes from one to the other stays in the caches. As the sums of a pass are added in order, the
// results are the same however many passes a round has.
struct Rounds {
  int64_t rows;    // in all
  int task, pass;  // rows
  int64_t round;

  Rounds(int64_t rows, int task, int threads)
      : rows(rows), task(task), pass((DEPTH + task - 1) / task * task), round((int64_t)pass * ((threads + 1) / 2)) {}

  int64_t most() const { return smaller_of(round, rows); }
  // range(begin, end) for the rows of some tasks of a round of `count` rows
  template <class Range> void tasks(ParallelFor pool, int64_t count, const Range& range) const {
    parallel(pool, (count + task - 1) / task, [&](int64_t begin, int64_t end) {
      range(begin * task, smaller_of(count, end * task));
    });
  }
};

}  // namespace
