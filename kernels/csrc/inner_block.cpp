// The inner block, forward and backward, of VL sequences side by side: one in each lane, transposed as it is read, so that
// nothing is ever summed across lanes. The backward recomputes from x and the residual stream between the two halves.
// Sums of weight gradients are kept for each lane and task; tasks depend on the number of sequences alone and are added
// in order, so results are the same on any number of threads.
#include "parallel.h"
#include "tiles.h"

namespace {

constexpr float LOG2E = 1.44269504088896f, LN2 = 0.693147180559945f;
constexpr int HIDDEN = 12;     // hidden columns of one pass of the backward
constexpr int MAX_LENGTH = 64;  // tokens of a sequence
constexpr int GROUPS = 8;      // VL sequences each: a task has at least so many, else its sums would cost too much
constexpr int TASKS = 128;     // of the backward at most

struct Sizes {
  int L, C, H, D, F;
  explicit Sizes(const InnerBlock& b)
      : L(b.length), C(b.channels), H(b.heads), D(b.channels / b.heads), F(b.hidden) {}
  int row() const { return L * C; }
  int blocks() const { return (F + HIDDEN - 1) / HIDDEN; }
  int width(int block) const { return F - block * HIDDEN < HIDDEN ? F - block * HIDDEN : HIDDEN; }
};

// The weights in the order of `linear`. Folded in: LayerNorm's affine part, the softmax scale and log2(e), the base of
// the exponential being 2. The transposed ones carry gradients back and give dx^ = W^T dy.
struct Weights {
  Scratch<float> memory;
  float *qkv, *qkv_bias, *qkv_back, *proj, *proj_bias, *proj_back, *fc1, *fc1_bias, *fc1_back, *fc2, *fc2_bias, *fc2_back;

  explicit Weights(const Sizes& z) : memory(8 * z.C * z.C + 4 * z.F * z.C + 5 * z.C + z.F) {
    float* p = memory;
    auto take = [&p](int n) { float* at = p; p += n; return at; };
    const int cc = z.C * z.C, fc = z.F * z.C;
    qkv = take(3 * cc), qkv_bias = take(3 * z.C), qkv_back = take(3 * cc);
    proj = take(cc), proj_bias = take(z.C), proj_back = take(cc);
    fc1 = take(fc), fc1_bias = take(z.F), fc1_back = take(fc);
    fc2 = take(fc), fc2_bias = take(z.C), fc2_back = take(fc);
  }

  void pack(const Sizes& z, const float* const* p) {
    const float *norm1 = p[0], *shift1 = p[1], *wqkv = p[2], *bqkv = p[3], *wproj = p[4], *bproj = p[5];
    const float *norm2 = p[6], *shift2 = p[7], *w1 = p[8], *b1 = p[9], *w2 = p[10], *b2 = p[11];
    const int C = z.C, D = z.D, F = z.F;
    const float scale = 1.f / __builtin_sqrtf((float)D);
    for (int h = 0; h < z.H; ++h)
      for (int part = 0; part < 3; ++part)
        for (int d = 0; d < D; ++d) {
          const int row = part * C + h * D + d, o = part * D + d, at = h * 3 * D * C;
          const float forward = part == 0 ? scale * LOG2E : 1.f, back = part == 0 ? scale : part == 1 ? LN2 : 1.f;
          float bias = bqkv ? bqkv[row] : 0.f;
          for (int c = 0; c < C; ++c) {
            const float v = wqkv[row * C + c], folded = v * (norm1 ? norm1[c] : 1.f);
            bias += v * (shift1 ? shift1[c] : 0.f);
            qkv[at + packed_at(3 * D, C, o, c)] = folded * forward;
            qkv_back[at + packed_at(C, 3 * D, c, o)] = folded * back;
          }
          qkv_bias[h * 3 * D + o] = bias * forward;
        }
    for (int o = 0; o < C; ++o) {
      proj_bias[o] = bproj ? bproj[o] : 0.f, fc2_bias[o] = b2 ? b2[o] : 0.f;
      for (int c = 0; c < C; ++c) {
        proj[packed_at(C, C, o, c)] = wproj[o * C + c];
        proj_back[c / D * D * C + packed_at(D, C, c % D, o)] = wproj[o * C + c];
      }
      for (int f = 0; f < F; ++f) fc2[packed_at(C, F, o, f)] = fc2_back[packed_at(F, C, f, o)] = w2[o * F + f];
    }
    for (int f = 0; f < F; ++f) {
      const int block = f / HIDDEN;
      float bias = b1 ? b1[f] : 0.f;
      for (int c = 0; c < C; ++c) {
        const float v = w1[f * C + c], folded = v * (norm2 ? norm2[c] : 1.f);
        bias += v * (shift2 ? shift2[c] : 0.f);
        fc1[packed_at(F, C, f, c)] = folded;
        fc1_back[block * HIDDEN * C + packed_at(C, z.width(block), c, f % HIDDEN)] = folded;
      }
      fc1_bias[f] = bias;
    }
  }
};

// Where the sums of each weight's gradient lie among those of a task, against normalised x where the norm is folded.
struct Places {
  int qkv, qkv_bias, proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias, count;
  explicit Places(const Sizes& z) {
    int n = 0;
    auto take = [&n](int k) { const int at = n; n += k; return at; };
    qkv = take(3 * z.C * z.C), qkv_bias = take(3 * z.C), proj = take(z.C * z.C), proj_bias = take(z.C);
    fc1 = take(z.F * z.C), fc1_bias = take(z.F), fc2 = take(z.F * z.C), fc2_bias = take(z.C);
    count = n;
  }
  int padded() const { return (count + VL - 1) / VL * VL; }
};

// The gradients of a linear layer W (gamma x^ + beta) + b and of its norm from the sums A = dy x^T and a = sum dy:
// dW = A gamma + a beta^T, dgamma = sum_o W A, dbeta = W^T a.
void unfold(int rows, int C, const float* w, const float* gamma, const float* beta, const float* A, const float* a,
            float* dgamma, float* dbeta, float* dw, float* db) {
  for (int c = 0; c < C; ++c) {
    if (dgamma) dgamma[c] = 0.f;
    if (dbeta) dbeta[c] = 0.f;
  }
  for (int o = 0; o < rows; ++o) {
    if (db) db[o] = a[o];
    for (int c = 0; c < C; ++c) {
      dw[o * C + c] = A[o * C + c] * (gamma ? gamma[c] : 1.f) + a[o] * (beta ? beta[c] : 0.f);
      if (dgamma) dgamma[c] += w[o * C + c] * A[o * C + c];
      if (dbeta) dbeta[c] += w[o * C + c] * a[o];
    }
  }
}

bool unpack(const Sizes& z, const float* const* p, const float* sums, float* const* g) {
  const int C = z.C, D = z.D;
  const Places at(z);
  const float scale = 1.f / __builtin_sqrtf((float)D);
  Scratch<float> A(3 * C * C), a(3 * C);
  if (!A || !a) return false;
  for (int row = 0; row < 3 * C; ++row) {  // from head by head to q, k, v
    const int part = row / C, h = row % C / D, from = h * 3 * D + part * D + row % D;
    const float factor = part == 0 ? scale : part == 1 ? LN2 : 1.f;
    a[row] = sums[at.qkv_bias + from] * factor;
    for (int c = 0; c < C; ++c) A[row * C + c] = sums[at.qkv + from * C + c] * factor;
  }
  unfold(3 * C, C, p[2], p[0], p[1], A, a, g[0], g[1], g[2], g[3]);
  unfold(z.F, C, p[8], p[6], p[7], sums + at.fc1, sums + at.fc1_bias, g[6], g[7], g[8], g[9]);
  std::memcpy(g[4], sums + at.proj, C * C * sizeof(float));
  std::memcpy(g[10], sums + at.fc2, z.F * C * sizeof(float));
  if (g[5]) std::memcpy(g[5], sums + at.proj_bias, C * sizeof(float));
  if (g[11]) std::memcpy(g[11], sums + at.fc2_bias, C * sizeof(float));
  return true;
}

// Softmax attention of one head of width D (0: `width`), its q, k and v [L][3 D], its output every C vectors.
template <bool EXACT, int WIDTH> struct Head {
  static constexpr int MOST = WIDTH ? WIDTH : 1;  // vectors of a token that stay in registers
  int L, C, width;
  ALWAYS int D() const { return WIDTH ? WIDTH : width; }

  ALWAYS V dot(const V* a, const V* b) const {
    V v = a[0] * b[0];
    if constexpr (WIDTH != 0) {
      UNROLL for (int d = 1; d < WIDTH; ++d) v += a[d] * b[d];
    } else {
      for (int d = 1; d < width; ++d) v += a[d] * b[d];
    }
    return v;
  }
  // scores of token i in base 2 and their largest
  ALWAYS V scores(int i, const V* qkv, V* s) const {
    const int S = 3 * D();
    const V* q = qkv + i * S;
    V most = splat(-3e38f);
    UNROLL_4 for (int j = 0; j < L; ++j) {
      s[j] = dot(q, qkv + j * S + D());
      most = larger(most, s[j]);
    }
    return most;
  }
  // o = softmax(s) v of token i; s becomes the weights before their sum, whose reciprocal is given
  ALWAYS V mix(const V* qkv, V most, V* s, V* o) const {
    const int S = 3 * D();
    V sum{};
    if constexpr (WIDTH != 0) {
      V mixed[MOST];
      UNROLL for (int d = 0; d < WIDTH; ++d) mixed[d] = V{};
      UNROLL_4 for (int j = 0; j < L; ++j) {
        const V e = exp2<EXACT>(s[j] - most);
        sum += e, s[j] = e;
        UNROLL for (int d = 0; d < WIDTH; ++d) mixed[d] += e * qkv[j * S + 2 * WIDTH + d];
      }
      const V r = 1.f / sum;
      UNROLL for (int d = 0; d < WIDTH; ++d) o[d] = mixed[d] * r;
      return r;
    } else {
      for (int j = 0; j < L; ++j) {
        const V e = exp2<EXACT>(s[j] - most);
        sum += e, s[j] = e;
      }
      const V r = 1.f / sum;
      for (int d = 0; d < width; ++d) {
        V mixed{};
        for (int j = 0; j < L; ++j) mixed += s[j] * qkv[j * S + 2 * width + d];
        o[d] = mixed * r;
      }
      return r;
    }
  }
  OWN void forward(const V* qkv, V* o) const {
    V s[MAX_LENGTH];
    for (int i = 0; i < L; ++i) {
      const V most = scores(i, qkv, s);
      mix(qkv, most, s, o + i * C);
    }
  }
  // o again, and the gradients `g` of q, k and v from that of o, `back` [L][D]
  OWN void backward(const V* qkv, const V* back, V* o, V* g) const {
    const int S = 3 * D();
    for (int i = 0; i < L * S; ++i) g[i] = V{};
    for (int i = 0; i < L; ++i) {
      V s[MAX_LENGTH];
      const V most = scores(i, qkv, s), r = mix(qkv, most, s, o + i * C);
      const V delta = dot(o + i * C, back + i * D());
      if constexpr (WIDTH != 0) {
        V q[MOST], dq[MOST], d_o[MOST];
        UNROLL for (int d = 0; d < WIDTH; ++d) q[d] = qkv[i * S + d], dq[d] = V{}, d_o[d] = back[i * WIDTH + d];
        for (int j = 0; j < L; ++j) {
          const V *k = qkv + j * S + WIDTH, *v = k + WIDTH;
          const V p = s[j] * r;
          V ds = d_o[0] * v[0] - delta;
          UNROLL for (int d = 1; d < WIDTH; ++d) ds += d_o[d] * v[d];
          ds = ds * p;
          V* to = g + j * S + WIDTH;
          UNROLL for (int d = 0; d < WIDTH; ++d) {
            dq[d] += ds * k[d];
            to[d] += ds * q[d];
            to[WIDTH + d] += p * d_o[d];
          }
        }
        UNROLL for (int d = 0; d < WIDTH; ++d) g[i * S + d] = dq[d];
      } else {
        for (int j = 0; j < L; ++j) {
          const V *q = qkv + i * S, *k = qkv + j * S + width, *v = k + width, *d_o = back + i * width;
          const V p = s[j] * r;
          V ds = -delta;
          for (int d = 0; d < width; ++d) ds += d_o[d] * v[d];
          ds = ds * p;
          V *dq = g + i * S, *to = g + j * S + width;
          for (int d = 0; d < width; ++d) {
            dq[d] += ds * k[d];
            to[d] += ds * q[d];
            to[width + d] += p * d_o[d];
          }
        }
      }
    }
  }
};

template <class E> ALWAYS void fetch(int64_t n, const E* p) {
  for (int64_t i = 0; i < n; i += 64 / (int)sizeof(E)) __builtin_prefetch(p + i);
}

// E: what tokens are stored in; WIDTH: of a head, 0 for any
template <class E, int WIDTH> struct Block {
  static constexpr bool EXACT = sizeof(E) == 4;
  const Sizes z;
  const Weights& w;
  const float eps;
  const Head<EXACT, WIDTH> head{z.L, z.C, z.D};

  int forward_vectors() const { return 3 * z.row() + larger_of(3 * z.L * z.D, TT * z.F); }
  int backward_vectors() const {
    return 5 * z.row() + 2 * z.L * larger_of(3 * z.D, HIDDEN) + z.L * z.D + z.L;
  }
  static int larger_of(int a, int b) { return a > b ? a : b; }

  // VL sequences x to y and, where wanted, the residual stream between the halves
  void forward(const E* x, E* y, E* mid, V* scratch) const {
    const auto [L, C, H, D, F] = z;
    const int n = z.row();
    fetch((int64_t)VL * n, x + VL * n);
    V *X = scratch, *normed = X + n, *o = normed + n, *a = o + n;
    gather_rows(n, x, X);
    normalise(L, C, X, normed, nullptr, eps);
    for (int h = 0; h < H; ++h) {
      linear<false>(L, 3 * D, C, normed, C, w.qkv + h * 3 * D * C, w.qkv_bias + h * 3 * D, a, 3 * D);
      head.forward(a, o + h * D);
    }
    linear<true>(L, C, C, o, C, w.proj, w.proj_bias, X, C);
    if (mid) scatter_rows(n, mid, X);
    normalise(L, C, X, normed, nullptr, eps);
    for (int t = 0; t < L; t += TT) {
      const int rows = L - t < TT ? L - t : TT;
      linear<false>(rows, F, C, normed + t * C, C, w.fc1, w.fc1_bias, a, F);
      for (int i = 0; i < rows * F; ++i) a[i] = gelu<EXACT>(a[i]);
      linear<true>(rows, C, F, a, F, w.fc2, w.fc2_bias, X + t * C, C);
    }
    scatter_rows(n, y, X);
  }

  // dx of VL sequences; adds to the sums `g`, each a vector, at `at`
  void backward(const E* x, const E* mid, const E* dy, E* dx, V* g, const Places& at, V* scratch) const {
    const auto [L, C, H, D, F] = z;
    const int n = z.row();
    for (const E* p : {x, mid, dy}) fetch((int64_t)VL * n, p + VL * n);
    V *X = scratch, *normed = X + n, *G = normed + n, *back = G + n, *o = back + n, *rstd = o + n, *a = rstd + L;
    V *da = a + L * larger_of(3 * D, HIDDEN), *d_o = da + L * larger_of(3 * D, HIDDEN);
    gather_rows(n, mid, X);
    gather_rows(n, dy, G);
    normalise(L, C, X, normed, rstd, eps);
    for (int i = 0; i < n; ++i) back[i] = V{};
    for (int b = 0; b < z.blocks(); ++b) {
      const int f = b * HIDDEN, width = z.width(b);
      linear<false>(L, width, C, normed, C, w.fc1 + f * C, w.fc1_bias + f, a, width);
      linear<false>(L, width, C, G, C, w.fc2_back + f * C, nullptr, da, width);
      for (int i = 0; i < L * width; ++i) {
        const Gelu e = gelu_and_slope<EXACT>(a[i]);
        a[i] = e.value, da[i] *= e.slope;
      }
      outer(L, C, width, G, C, a, width, g + at.fc2 + f, F);
      outer(L, width, C, da, width, normed, C, g + at.fc1 + f * C, C);
      column_sums(L, width, da, width, g + at.fc1_bias + f);
      linear<true>(L, C, width, da, width, w.fc1_back + f * C, nullptr, back, C);
    }
    column_sums(L, C, G, C, g + at.fc2_bias);
    normalise_backward(L, C, back, normed, rstd, G);
    gather_rows(n, x, X);
    normalise(L, C, X, normed, rstd, eps);
    for (int i = 0; i < n; ++i) back[i] = V{};
    for (int h = 0; h < H; ++h) {
      const int rows = h * 3 * D;
      linear<false>(L, 3 * D, C, normed, C, w.qkv + rows * C, w.qkv_bias + rows, a, 3 * D);
      linear<false>(L, D, C, G, C, w.proj_back + h * D * C, nullptr, d_o, D);
      head.backward(a, d_o, o + h * D, da);
      outer(L, 3 * D, C, da, 3 * D, normed, C, g + at.qkv + rows * C, C);
      column_sums(L, 3 * D, da, 3 * D, g + at.qkv_bias + rows);
      linear<true>(L, C, 3 * D, da, 3 * D, w.qkv_back + rows * C, nullptr, back, C);
    }
    outer(L, C, C, G, C, o, C, g + at.proj, C);
    column_sums(L, C, G, C, g + at.proj_bias);
    normalise_backward(L, C, back, normed, rstd, G);
    scatter_rows(n, dx, G);
  }
};

// Calls work(tensors) for group `k` of VL sequences; one that sticks out is copied to `spare`, zeros behind it, and back.
template <class E, int IN, int OUT, class Work>
ALWAYS void with_group(int64_t k, int64_t sequences, int row, E* const (&tensors)[IN + OUT], E* spare, const Work& work) {
  const int64_t left = sequences - k * VL;
  E* at[IN + OUT];
  for (int i = 0; i < IN + OUT; ++i) at[i] = tensors[i] ? tensors[i] + k * VL * row : nullptr;
  if (left >= VL) return work(at);
  E* inside[IN + OUT];
  for (int i = 0; i < IN + OUT; ++i) {
    inside[i] = at[i] ? spare + i * VL * row : nullptr;
    if (i >= IN) continue;
    std::memcpy(inside[i], at[i], left * row * sizeof(E));
    std::memset((void*)(inside[i] + left * row), 0, (VL - left) * row * sizeof(E));
  }
  work(inside);
  for (int i = IN; i < IN + OUT; ++i)
    if (at[i]) std::memcpy(at[i], inside[i], left * row * sizeof(E));
}

template <class E, int WIDTH> int forward(const InnerBlock& b, const E* x, E* y, E* mid) {
  const Sizes z(b);
  Weights w(z);
  if (!w.memory) return TITN_NO_MEMORY;
  w.pack(z, b.weights);
  const Block<E, WIDTH> block{z, w, b.eps};
  const int64_t groups = (b.sequences + VL - 1) / VL;
  Failure failure;
  parallel(b.parallel_for, (groups + GROUPS - 1) / GROUPS, [&](int64_t begin, int64_t end) {
    Scratch<V> scratch(block.forward_vectors());
    Scratch<E> spare((int64_t)3 * VL * z.row());
    if (!scratch || !spare) return failure.raise();
    for (int64_t k = begin * GROUPS; k < groups && k < end * GROUPS; ++k)
      with_group<E, 1, 2>(k, b.sequences, z.row(), {const_cast<E*>(x), y, mid}, spare,
                          [&](E* const* t) { block.forward(t[0], t[1], t[2], scratch); });
  });
  return failure.result();
}

template <class E, int WIDTH>
int backward(const InnerBlock& b, const E* x, const E* mid, const E* dy, E* dx, float* const* gradients) {
  const Sizes z(b);
  const Places at(z);
  Weights w(z);
  const int64_t groups = (b.sequences + VL - 1) / VL;
  const int64_t per = groups <= GROUPS * TASKS ? GROUPS : (groups + TASKS - 1) / TASKS, tasks = (groups + per - 1) / per;
  const int padded = at.padded();
  Scratch<float> sums((tasks > 0 ? tasks : 1) * padded);
  if (!w.memory || !sums) return TITN_NO_MEMORY;
  w.pack(z, b.weights);
  const Block<E, WIDTH> block{z, w, b.eps};
  Failure failure;
  parallel(b.parallel_for, tasks, [&](int64_t begin, int64_t end) {
    Scratch<V> scratch(block.backward_vectors()), g(padded);
    Scratch<E> spare((int64_t)4 * VL * z.row());
    if (!scratch || !spare || !g) return failure.raise();
    for (int64_t task = begin; task < end; ++task) {
      std::memset((void*)g.p, 0, padded * sizeof(V));
      for (int64_t k = task * per; k < groups && k < (task + 1) * per; ++k)
        with_group<E, 3, 1>(k, b.sequences, z.row(), {const_cast<E*>(x), const_cast<E*>(mid), const_cast<E*>(dy), dx}, spare,
                            [&](E* const* t) { block.backward(t[0], t[1], t[2], t[3], g, at, scratch); });
      for (int i = 0; i < padded; i += VL) {  // lanes are added by transposition
        V* lanes = g + i;
        transpose(lanes);
        V s = lanes[0];
        UNROLL for (int r = 1; r < VL; ++r) s += lanes[r];
        store(sums + task * padded + i, s);
      }
    }
  });
  if (failure.raised) return TITN_NO_MEMORY;
  if (tasks == 0) std::memset(sums, 0, padded * sizeof(float));
  for (int64_t task = 1; task < tasks; ++task)
    for (int i = 0; i < padded; i += VL) store(sums + i, load(sums + i) + load(sums + task * padded + i));
  return unpack(z, b.weights, sums, gradients) ? TITN_OK : TITN_NO_MEMORY;
}

template <class E> int forward(const InnerBlock& b, const void* x, void* y, void* mid) {
  switch (b.channels / b.heads) {  // widths of TNT's tiny, small and base; others take a loop
    case 3: return forward<E, 3>(b, (const E*)x, (E*)y, (E*)mid);
    case 6: return forward<E, 6>(b, (const E*)x, (E*)y, (E*)mid);
    case 10: return forward<E, 10>(b, (const E*)x, (E*)y, (E*)mid);
    default: return forward<E, 0>(b, (const E*)x, (E*)y, (E*)mid);
  }
}
template <class E>
int backward(const InnerBlock& b, const void* x, const void* mid, const void* dy, void* dx, float* const* g) {
  switch (b.channels / b.heads) {
    case 3: return backward<E, 3>(b, (const E*)x, (const E*)mid, (const E*)dy, (E*)dx, g);
    case 6: return backward<E, 6>(b, (const E*)x, (const E*)mid, (const E*)dy, (E*)dx, g);
    case 10: return backward<E, 10>(b, (const E*)x, (const E*)mid, (const E*)dy, (E*)dx, g);
    default: return backward<E, 0>(b, (const E*)x, (const E*)mid, (const E*)dy, (E*)dx, g);
  }
}

}  // namespace

extern "C" int PATH(inner_block_forward)(const InnerBlock* b, const void* x, void* y, void* mid) {
  return b->bf16 ? forward<bf16>(*b, x, y, mid) : forward<float>(*b, x, y, mid);
}
extern "C" int PATH(inner_block_backward)(
    const InnerBlock* b, const void* x, const void* mid, const void* dy, void* dx, float* const* gradients) {
  return b->bf16 ? backward<bf16>(*b, x, mid, dy, dx, gradients) : backward<float>(*b, x, mid, dy, dx, gradients);
}
