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

struct Results {
  Tokens y, mid, dx;
  std::vector<Floats> gradients;
  bool operator==(const Results& o) const {
    return y == o.y && mid == o.mid && dx == o.dx && gradients == o.gradients;
  }
};

static Results run(InnerBlock block, const Tokens& x, const Tokens& dy, const std::vector<Floats>& weights) {
  Results r{Tokens(x.size()), Tokens(x.size()), Tokens(x.size()), {}};
  std::vector<const float*> given;
  std::vector<float*> wanted;
  for (const Floats& w : weights) r.gradients.emplace_back(w.size(), NAN);
  for (size_t i = 0; i < weights.size(); ++i) {
    given.push_back(weights[i].empty() ? nullptr : weights[i].data());
    wanted.push_back(weights[i].empty() ? nullptr : r.gradients[i].data());
  }
  block.parallel_for = loop, block.weights = given.data();
  if (titn_inner_block_forward(&block, x.data(), r.y.data(), r.mid.data())) std::abort();
  if (titn_inner_block_forward(&block, x.data(), r.y.data(), nullptr)) std::abort();
  if (titn_inner_block_backward(&block, x.data(), r.mid.data(), dy.data(), r.dx.data(), wanted.data())) std::abort();
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

static void inner_block(const char* path, int S, int L, int C, int H, int F, bool bf16, bool absent) {
  const int sizes[12] = {C, C, 3 * C * C, 3 * C, C * C, C, C, C, F * C, F, C * F, C};
  const bool matrix[12] = {0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0};
  std::vector<Floats> weights(12);
  for (int i = 0; i < 12; ++i)
    for (int k = 0; k < sizes[i] && (matrix[i] || !absent); ++k) weights[i].push_back(number());
  const Tokens x = draw((int64_t)S * L * C, bf16), dy = draw((int64_t)S * L * C, bf16);
  const InnerBlock block{nullptr, S, L, C, H, F, bf16, 1e-5f, nullptr};
  threads = 1;
  const Results one = run(block, x, dy, weights);
  threads = 3;
  if (!(run(block, x, dy, weights) == one)) std::abort();
  std::printf("%s %g %g %g", path, size(one.y, bf16), size(one.mid, bf16), size(one.dx, bf16));
  for (const Floats& g : one.gradients) {
    double sum = 0;
    for (float f : g) sum += std::fabs(f);
    std::printf(" %g", sum);
  }
  std::printf("\n");
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
      }
    std::srand(1);
  }
}
