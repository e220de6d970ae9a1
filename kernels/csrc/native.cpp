// The library's entry points: each goes to the fastest path that this CPU can run, chosen when first needed. CMake says by
// TITN_AVX512, TITN_AVX2 which paths there are beside the one for every CPU of the kind that it compiles for.
#include <cstring>
#include "titn.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#define DECLARE(path)                                                                                \
  extern "C" int inner_block_forward_##path(const InnerBlock*, const void*, void*, void*);           \
  extern "C" int inner_block_backward_##path(const InnerBlock*, const void*, const void*, const void*, void*, \
                                             float* const*);
#define TABLE(path, runs) {#path, runs, inner_block_forward_##path, inner_block_backward_##path}

DECLARE(generic)
#ifdef TITN_AVX2
DECLARE(avx2)
#endif
#ifdef TITN_AVX512
DECLARE(avx512)
#endif

namespace {

struct Path {
  const char* name;
  bool (*runs)();
  int (*inner_block_forward)(const InnerBlock*, const void*, void*, void*);
  int (*inner_block_backward)(const InnerBlock*, const void*, const void*, const void*, void*, float* const*);
};

#ifdef TITN_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef TITN_AVX2
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
bool always() { return true; }

const Path PATHS[] = {
#ifdef TITN_AVX512
    TABLE(avx512, has_avx512),
#endif
#ifdef TITN_AVX2
    TABLE(avx2, has_avx2),
#endif
    TABLE(generic, always),
};

const Path* fastest() {
  const Path* path = PATHS;
  while (!path->runs()) ++path;
  return path;
}

const Path* chosen = nullptr;

const Path& path() {
  const Path* found = __atomic_load_n(&chosen, __ATOMIC_ACQUIRE);
  if (found == nullptr) __atomic_store_n(&chosen, found = fastest(), __ATOMIC_RELEASE);
  return *found;
}

}  // namespace

// the name of the path in use: "avx512", "avx2" or "generic"
EXPORT const char* titn_path() { return path().name; }

// takes another path from now on; 0 where this library or this CPU lacks it
EXPORT int titn_take_path(const char* name) {
  for (const Path& each : PATHS)
    if (std::strcmp(each.name, name) == 0 && each.runs()) {
      __atomic_store_n(&chosen, &each, __ATOMIC_RELEASE);
      return 1;
    }
  return 0;
}

// x [S, L, C] to y and, where not null, the residual stream between the halves, mid
EXPORT int titn_inner_block_forward(const InnerBlock* block, const void* x, void* y, void* mid) {
  return path().inner_block_forward(block, x, y, mid);
}

// dy to dx and the gradients of the weights that are there
EXPORT int titn_inner_block_backward(const InnerBlock* block, const void* x, const void* mid, const void* dy, void* dx,
                                     float* const* gradients) {
  return path().inner_block_backward(block, x, mid, dy, dx, gradients);
}
