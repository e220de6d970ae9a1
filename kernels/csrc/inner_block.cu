// The inner block's kernels for GPUs; titn/kernels/inner_block/cuda.py compiles and launches them. Grid: any number of
// programs of WARPS warps.
#include "gpu_warp.h"
#include "inner_backward_warp.h"

constexpr int WARPS = 4;

extern "C" __global__ void __launch_bounds__(32 * WARPS, 3)
    titn_inner_forward(const unsigned short* x, unsigned short* mid, unsigned short* y, const unsigned short* weights,
                       const float* fc2_bias, unsigned sequences, float eps) {
  const unsigned warp = blockIdx.x * WARPS + threadIdx.x / 32;
  inner_forward<Gpu>(x, mid, y, weights, fc2_bias, warp, sequences, gridDim.x * WARPS, eps);
}

// Adds what the warps of a program have, one after the other, to sums[blockIdx.x], [16, ROWS].
template <int ROWS, class Gradients>
WARP_INLINE void store_sums(float* sums, const Gradients& gradients) {
  __shared__ float total[16 * ROWS];
  for (int turn = 0; turn < WARPS; ++turn) {
    if (threadIdx.x / 32 == turn) gradients.add_to(total, turn > 0);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < 16 * ROWS; i += 32 * WARPS) sums[blockIdx.x * (16 * ROWS) + i] = total[i];
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    titn_inner_mlp_backward(const unsigned short* mid, const unsigned short* dy, unsigned short* dmid,
                            const unsigned short* weights, float* sums, unsigned sequences, float eps) {
  const unsigned warp = blockIdx.x * WARPS + threadIdx.x / 32;
  store_sums<MLP_SUMS>(sums,
                       inner_mlp_backward<Gpu>(mid, dy, dmid, weights, warp, sequences, gridDim.x * WARPS, eps));
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    titn_inner_attention_backward(const unsigned short* x, const unsigned short* dy, unsigned short* dx,
                                  const unsigned short* weights, float* sums, unsigned sequences, float eps) {
  const unsigned warp = blockIdx.x * WARPS + threadIdx.x / 32;
  store_sums<ATTENTION_SUMS>(sums, inner_attention_backward<Gpu>(x, dy, dx, weights, warp, sequences,
                                                                 gridDim.x * WARPS, eps));
}
