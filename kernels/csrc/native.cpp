// The library's entry points: each goes to the fastest path that this CPU can run, chosen when first needed. CMake says by
// TITN_AVX512, TITN_AVX2 which paths there are beside the one for every CPU of the kind that it compiles for.
#include <cstring>
#include "titn.h"

// of operations.cpp, compiled for each path
extern "C" const Operations operations_generic;
#ifdef TITN_AVX2
extern "C" const Operations operations_avx2;
#endif
#ifdef TITN_AVX512
extern "C" const Operations operations_avx512;
#endif

namespace {

struct Path {
  const char* name;
  bool (*runs)();
  const Operations* operations;
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
    {"avx512", has_avx512, &operations_avx512},
#endif
#ifdef TITN_AVX2
    {"avx2", has_avx2, &operations_avx2},
#endif
    {"generic", always, &operations_generic},
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

// the operations; titn.h says what they take
EXPORT int titn_inner_block_forward(const InnerBlock* told, const void* x, void* y, void* mid) {
  return path().operations->inner_block_forward(told, x, y, mid);
}
EXPORT int titn_inner_block_backward(const InnerBlock* told, const void* x, const void* mid, const void* dy, void* dx,
                                     float* const* gradients) {
  return path().operations->inner_block_backward(told, x, mid, dy, dx, gradients);
}
EXPORT int titn_outer_attention_forward(const OuterAttention* told, const void* x, void* y, void* qkv) {
  return path().operations->outer_attention_forward(told, x, y, qkv);
}
EXPORT int titn_outer_attention_backward(const OuterAttention* told, const void* x, const void* qkv, const void* dy,
                                         void* dx, float* const* gradients) {
  return path().operations->outer_attention_backward(told, x, qkv, dy, dx, gradients);
}
EXPORT int titn_layernorm_mlp_forward(const LayerNormMlp* told, const void* x, void* y, void* hidden) {
  return path().operations->layernorm_mlp_forward(told, x, y, hidden);
}
EXPORT int titn_layernorm_mlp_backward(const LayerNormMlp* told, const void* x, const void* hidden, const void* dy,
                                       void* dx, float* const* gradients) {
  return path().operations->layernorm_mlp_backward(told, x, hidden, dy, dx, gradients);
}
EXPORT int titn_pixels_to_patches_forward(const PixelsToPatches* told, const void* pixels, const void* patches, void* out) {
  return path().operations->pixels_to_patches_forward(told, pixels, patches, out);
}
EXPORT int titn_pixels_to_patches_backward(const PixelsToPatches* told, const void* pixels, const void* dy, void* dpixels,
                                           float* const* gradients) {
  return path().operations->pixels_to_patches_backward(told, pixels, dy, dpixels, gradients);
}
