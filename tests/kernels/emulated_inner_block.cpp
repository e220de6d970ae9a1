// The kernels of inner_block.cu on emulated warps, for ctypes: one program, whose warps run one after the other.
#include "emulated_warp.h"
#include "inner_backward_warp.h"

namespace {

template <class E>
struct Block {
  using Warp = Emulated<E>;

  static void forward(const E* x, E* mid, E* y, const E* weights, const float* fc2_bias, unsigned sequences,
                      unsigned warps, float eps) {
    for (unsigned warp = 0; warp < warps; ++warp)
      inner_forward<Warp>(x, mid, y, weights, fc2_bias, warp, sequences, warps, eps);
  }
  static void mlp_backward(const E* mid, const E* dy, E* dmid, const E* weights, float* sums, unsigned sequences,
                           unsigned warps, float eps) {
    for (unsigned warp = 0; warp < warps; ++warp)
      inner_mlp_backward<Warp>(mid, dy, dmid, weights, warp, sequences, warps, eps).add_to(sums, warp > 0);
  }
  static void attention_backward(const E* x, const E* dy, E* dx, const E* weights, float* sums, unsigned sequences,
                                 unsigned warps, float eps) {
    for (unsigned warp = 0; warp < warps; ++warp)
      inner_attention_backward<Warp>(x, dy, dx, weights, warp, sequences, warps, eps).add_to(sums, warp > 0);
  }
};

}  // namespace

#define ENTRIES(E, kind)                                                                                               \
  extern "C" void forward_##kind(const E* x, E* mid, E* y, const E* weights, const float* fc2_bias,                    \
                                 unsigned sequences, unsigned warps, float eps) {                                      \
    Block<E>::forward(x, mid, y, weights, fc2_bias, sequences, warps, eps);                                            \
  }                                                                                                                    \
  extern "C" void mlp_backward_##kind(const E* mid, const E* dy, E* dmid, const E* weights, float* sums,               \
                                      unsigned sequences, unsigned warps, float eps) {                                 \
    Block<E>::mlp_backward(mid, dy, dmid, weights, sums, sequences, warps, eps);                                       \
  }                                                                                                                    \
  extern "C" void attention_backward_##kind(const E* x, const E* dy, E* dx, const E* weights, float* sums,             \
                                            unsigned sequences, unsigned warps, float eps) {                           \
    Block<E>::attention_backward(x, dy, dx, weights, sums, sequences, warps, eps);                                     \
  }

ENTRIES(Bf16, bfloat16)
ENTRIES(float, float32)
