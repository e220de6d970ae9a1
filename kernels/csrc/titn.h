// The C interface of the library. Tensors are dense, row-major, float32 or (where a member says `bf16`) bfloat16; weights
// and their gradients are float32, and null where absent. `threads`: how many the pool has, for how much is in work at a
// time; results do not depend on it.
#pragma once
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

// what torch_parallel_for is: calls body(begin, end, context) for ranges that cover [begin, end), on the pool's threads
typedef void (*ParallelBody)(int64_t begin, int64_t end, void* context);
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context);

// S sequences of L tokens of C channels in H heads, F hidden columns. The twelve weights, in this order:
// norm1 weight and bias [C], qkv [3 C, C] and [3 C], proj [C, C] and [C], norm2 [C] and [C], fc1 [F, C] and [F],
// fc2 [C, F] and [C].
struct InnerBlock {
  ParallelFor parallel_for;
  int64_t sequences;
  int32_t length, channels, heads, hidden;
  int32_t bf16;
  float eps;
  const float* const* weights;
};

// B images of T tokens of D channels in H heads: x + attention(LN(x)), or the latter alone. bf16: of the tokens; bf16_kept:
// of q, k and v and, without the residual, of the result. The first six weights of InnerBlock.
struct OuterAttention {
  ParallelFor parallel_for;
  int64_t images;
  int32_t threads, length, width, heads;
  int32_t bf16, bf16_kept, residual;
  float eps;
  const float* const* weights;
};

// Rows of D channels, F hidden columns: x + mlp(LN(x)), or the latter alone. bf16: of the rows; bf16_kept: of the hidden
// columns before GELU and, without the residual, of the result. The last six weights of InnerBlock.
struct LayerNormMlp {
  ParallelFor parallel_for;
  int64_t rows;
  int32_t threads, width, hidden;
  int32_t bf16, bf16_kept, residual;
  float eps;
  const float* const* weights;
};

// B images of N patches of L pixels of C channels, T rows of D channels: LN over C, flattened and projected, added to rows
// 1 .. N. The weights: norm weight and bias [C], weight [D, L C], bias [D].
struct PixelsToPatches {
  ParallelFor parallel_for;
  int64_t images;
  int32_t threads, patches, tokens, pixels, channels, width;
  int32_t bf16_pixels, bf16_patches;
  float eps;
  const float* const* weights;
};

// What one instruction set has. A forward keeps what its last argument points to for the backward, if that is not null.
struct Operations {
  int (*inner_block_forward)(const InnerBlock*, const void* x, void* y, void* mid);
  int (*inner_block_backward)(const InnerBlock*, const void* x, const void* mid, const void* dy, void* dx,
                              float* const* gradients);
  int (*outer_attention_forward)(const OuterAttention*, const void* x, void* y, void* qkv);
  int (*outer_attention_backward)(const OuterAttention*, const void* x, const void* qkv, const void* dy, void* dx,
                                  float* const* gradients);
  int (*layernorm_mlp_forward)(const LayerNormMlp*, const void* x, void* y, void* hidden);
  int (*layernorm_mlp_backward)(const LayerNormMlp*, const void* x, const void* hidden, const void* dy, void* dx,
                                float* const* gradients);
  int (*pixels_to_patches_forward)(const PixelsToPatches*, const void* pixels, const void* patches, void* out);
  int (*pixels_to_patches_backward)(const PixelsToPatches*, const void* pixels, const void* dy, void* dpixels,
                                    float* const* gradients);
};

// the name of an operation of one path, as compiled with -DTITN_PATH=avx2: inner_block_forward_avx2
#define TITN_JOIN(operation, path) operation##_##path
#define TITN_NAME(operation, path) TITN_JOIN(operation, path)
#define PATH(operation) TITN_NAME(operation, TITN_PATH)

// results of the operations
enum { TITN_OK = 0, TITN_NO_MEMORY = 1 };
