// Calls the native library as the package does, for runs under sanitizers: odd sizes, absent weights, both storages, every
// instruction set of this CPU, one and three threads, whose results must be equal bit for bit. Tensors are heap blocks of
// exactly their size, so that the address sanitizer sees a step beyond them. Prints each case's path and how large its
// results are, for a comparison with another processor's.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#include "titn.h"

extern "C" int titn_take_path(const char*);
extern "C" int titn_inner_block_forward(const InnerBlock*, const void*, void*, void*);
extern "C" int titn_inner_block_backward(const InnerBlock*, const void*, const void*, const void*, void*, float* const*);
extern "C" int titn_outer_attention_forward(const OuterAttention*, const void*, void*, void*);
extern "C" int titn_outer_attention_backward(
    const OuterAttention*, const void*, const void*, const void*, void*, float* const*);
extern "C" int titn_layernorm_mlp_forward(const LayerNormMlp*, const void*, void*, void*);
extern "C" int titn_layernorm_mlp_backward(
    const LayerNormMlp*, const void*, const void*, const void*, void*, float* const*);
extern "C" int titn_pixels_to_patches_forward(const PixelsToPatches*, const void*, const void*, void*);
extern "C" int titn_pixels_to_patches_backward(const PixelsToPatches*, const void*, const void*, void*, float* const*);
typedef void OnLevels(uint8_t* const*, const int64_t* const*, const int32_t*, int32_t, const uint8_t* const*,
                      const int64_t* const*, const int32_t*, int32_t);
extern "C" OnLevels titn_equalize, titn_autocontrast;

typedef std::vector<float> Floats;
typedef std::vector<uint16_t> Tokens;  // two for each float32

static int threads = 1;

static int32_t loop(int64_t begin, int64_t end, int64_t, ParallelBody body, void* context) {
  std::vector<std::thread> pool;
  const int64_t share = (end - begin + threads - 1) / threads;
  for (int64_t b = begin; b < end; b += share)
    pool.emplace_back([=] { body(b, b + share < end ? b + share : end, context); });
  for (std::thread& each : pool) each.join();
  return 0;
}

static float number() { return (float)std::rand() / (float)RAND_MAX - 0.5f; }

static Tokens draw(int64_t n, bool bf16) {
  Tokens t(bf16 ? n : 2 * n);
  for (int64_t i = 0; i < n; ++i) {
    const float f = number();
    if (bf16) std::memcpy(&t[i], (const char*)&f + 2, 2);
    else std::memcpy(&t[2 * i], &f, 4);
  }
  return t;
}

static Tokens blank(int64_t n, bool bf16) { return Tokens(bf16 ? n : 2 * n); }

struct Results {
  Tokens y, kept, dx;
  std::vector<Floats> gradients;
  bool operator==(const Results& o) const {
    return y == o.y && kept == o.kept && dx == o.dx && gradients == o.gradients;
  }
};

// forward(told, y, kept) with and without keeping, and backward(told, kept, dx, gradients)
template <class Told, class Forward, class Backward>
static Results run(Told told, Results r, const std::vector<Floats>& weights, const Forward& forward, const Backward& backward) {
  std::vector<const float*> given;
  std::vector<float*> wanted;
  for (const Floats& w : weights) r.gradients.emplace_back(w.size(), NAN);
  for (size_t i = 0; i < weights.size(); ++i) {
    given.push_back(weights[i].empty() ? nullptr : weights[i].data());
    wanted.push_back(weights[i].empty() ? nullptr : r.gradients[i].data());
  }
  told.parallel_for = loop, told.weights = given.data();
  if (forward(&told, r.y.data(), r.kept.data())) std::abort();
  const Tokens y = r.y;
  if (forward(&told, r.y.data(), nullptr) || r.y != y) std::abort();
  if (backward(&told, r.kept.data(), r.dx.data(), wanted.data())) std::abort();
  for (const Floats& g : r.gradients)
    for (float f : g)
      if (!std::isfinite(f)) std::abort();
  return r;
}

static float value(const Tokens& t, size_t i, bool bf16) {
  float f = 0.f;
  if (bf16) std::memcpy((char*)&f + 2, &t[i], 2);
  else std::memcpy(&f, &t[2 * i], 4);
  return f;
}

static double size(const Tokens& t, bool bf16) {
  double sum = 0;
  for (size_t i = 0; i < t.size() / (bf16 ? 1 : 2); ++i) sum += std::fabs(value(t, i, bf16));
  return sum;
}

// on one and on three threads; `bf16`: of y, kept and dx
template <class Work> static void compare(const char* path, const bool (&bf16)[3], const Work& work) {
  threads = 1;
  const Results one = work();
  threads = 3;
  if (!(work() == one)) std::abort();
  std::printf("%s %g %g %g", path, size(one.y, bf16[0]), size(one.kept, bf16[1]), size(one.dx, bf16[2]));
  for (const Floats& g : one.gradients) {
    double sum = 0;
    for (float f : g) sum += std::fabs(f);
    std::printf(" %g", sum);
  }
  std::printf("\n");
}

// of these sizes, the vectors of a block's halves absent where said
static std::vector<Floats> draw_weights(const std::vector<int>& sizes, const std::vector<bool>& matrix, bool absent) {
  std::vector<Floats> weights(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i)
    for (int k = 0; k < sizes[i] && (matrix[i] || !absent); ++k) weights[i].push_back(number());
  return weights;
}

static void inner_block(const char* path, int S, int L, int C, int H, int F, bool bf16, bool absent) {
  const std::vector<Floats> weights =
      draw_weights({C, C, 3 * C * C, 3 * C, C * C, C, C, C, F * C, F, C * F, C}, {0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0}, absent);
  const int64_t n = (int64_t)S * L * C;
  const Tokens x = draw(n, bf16), dy = draw(n, bf16);
  compare(path, {bf16, bf16, bf16}, [&] {
    return run(
        InnerBlock{nullptr, S, L, C, H, F, bf16, 1e-5f, nullptr}, {blank(n, bf16), blank(n, bf16), blank(n, bf16), {}}, weights,
        [&](const InnerBlock* told, void* y, void* mid) { return titn_inner_block_forward(told, x.data(), y, mid); },
        [&](const InnerBlock* told, void* mid, void* dx, float* const* g) {
          return titn_inner_block_backward(told, x.data(), mid, dy.data(), dx, g);
        });
  });
}

static void outer_attention(const char* path, int B, int T, int D, int H, bool bf16, bool kept, bool absent) {
  const std::vector<Floats> weights = draw_weights({D, D, 3 * D * D, 3 * D, D * D, D}, {0, 0, 1, 0, 1, 0}, absent);
  const int64_t n = (int64_t)B * T * D;
  const bool result = absent ? kept : bf16;  // there without the residual
  const Tokens x = draw(n, bf16), dy = draw(n, result);
  compare(path, {result, kept, bf16}, [&] {
    return run(
        OuterAttention{nullptr, B, threads, T, D, H, bf16, kept, !absent, 1e-5f, nullptr},
        {blank(n, result), blank(3 * n, kept), blank(n, bf16), {}}, weights,
        [&](const OuterAttention* told, void* y, void* qkv) { return titn_outer_attention_forward(told, x.data(), y, qkv); },
        [&](const OuterAttention* told, void* qkv, void* dx, float* const* g) {
          return titn_outer_attention_backward(told, x.data(), qkv, dy.data(), dx, g);
        });
  });
}

static void layernorm_mlp(const char* path, int n, int D, int F, bool bf16, bool kept, bool absent) {
  const std::vector<Floats> weights = draw_weights({D, D, F * D, F, D * F, D}, {0, 0, 1, 0, 1, 0}, absent);
  const bool result = absent ? kept : bf16;
  const Tokens x = draw((int64_t)n * D, bf16), dy = draw((int64_t)n * D, result);
  compare(path, {result, kept, bf16}, [&] {
    return run(
        LayerNormMlp{nullptr, n, threads, D, F, bf16, kept, !absent, 1e-5f, nullptr},
        {blank((int64_t)n * D, result), blank((int64_t)n * F, kept), blank((int64_t)n * D, bf16), {}}, weights,
        [&](const LayerNormMlp* told, void* y, void* hidden) { return titn_layernorm_mlp_forward(told, x.data(), y, hidden); },
        [&](const LayerNormMlp* told, void* hidden, void* dx, float* const* g) {
          return titn_layernorm_mlp_backward(told, x.data(), hidden, dy.data(), dx, g);
        });
  });
}

static void pixels_to_patches(const char* path, int B, int N, int T, int L, int C, int D, bool bf16, bool bf16_patches) {
  const std::vector<Floats> weights = draw_weights({C, C, D * L * C, D}, {1, 1, 1, 0}, bf16);
  const Tokens pixels = draw((int64_t)B * N * L * C, bf16), patches = draw((int64_t)B * T * D, bf16_patches);
  compare(path, {bf16_patches, false, bf16}, [&] {
    return run(
        PixelsToPatches{nullptr, B, threads, N, T, L, C, D, bf16, bf16_patches, 1e-5f, nullptr},
        {blank((int64_t)B * T * D, bf16_patches), {}, blank((int64_t)B * N * L * C, bf16), {}}, weights,
        [&](const PixelsToPatches* told, void* out, void*) {
          return titn_pixels_to_patches_forward(told, pixels.data(), patches.data(), out);
        },
        [&](const PixelsToPatches* told, void*, void* dx, float* const* g) {
          return titn_pixels_to_patches_backward(told, pixels.data(), patches.data(), dx, g);
        });
  });
}

// on images of noise, of two levels and of one, which stays
static void levels(const char* path, int F, int H, int W, int C) {
  for (OnLevels* change : {titn_equalize, titn_autocontrast}) {
    double sum = 0;
    for (int most : {256, 2, 1}) {
      std::vector<uint8_t> in((size_t)F * H * W * C), out(in.size());
      for (uint8_t& level : in) level = (uint8_t)(std::rand() % most);
      const int64_t shape[4] = {F, H, W, C}, *shapes = shape;
      const int32_t dims = 4;
      const uint8_t* from = in.data();
      uint8_t* to = out.data();
      change(&to, &shapes, &dims, 1, &from, &shapes, &dims, 1);
      if (most == 1 && out != in) std::abort();
      for (uint8_t level : out) sum += level;
    }
    std::printf("%s %g\n", path, sum);
  }
}

int main() {
  for (const char* path : {"generic", "avx2", "avx512"}) {
    if (!titn_take_path(path)) continue;
    for (bool bf16 : {false, true})
      for (bool absent : {false, true}) {
        inner_block(path, 300, 16, 12, 4, 48, bf16, absent);
        inner_block(path, 17, 5, 24, 4, 50, bf16, absent);
        inner_block(path, 3, 7, 5, 1, 3, bf16, absent);
        inner_block(path, 1, 64, 10, 1, 1, bf16, absent);
        inner_block(path, 0, 4, 6, 2, 8, bf16, absent);
        for (bool kept : {bf16, true}) {
          outer_attention(path, 39, 9, 32, 2, bf16, kept, absent);  // more than a pass, in whole panels
          outer_attention(path, 5, 7, 21, 3, bf16, kept, absent);
          layernorm_mlp(path, 650, 32, 96, bf16, kept, absent);
          layernorm_mlp(path, 7, 5, 33, bf16, kept, absent);
        }
        outer_attention(path, 0, 7, 6, 1, bf16, bf16, absent);
        layernorm_mlp(path, 0, 8, 8, bf16, bf16, absent);
        pixels_to_patches(path, 40, 8, 10, 4, 8, 32, bf16, absent);
        pixels_to_patches(path, 3, 5, 6, 3, 7, 9, bf16, absent);
        pixels_to_patches(path, 0, 2, 3, 1, 3, 5, bf16, absent);
      }
    levels(path, 3, 32, 32, 3);
    levels(path, 1, 5, 3, 1);
    levels(path, 0, 8, 8, 3);
    std::srand(1);
  }
}
