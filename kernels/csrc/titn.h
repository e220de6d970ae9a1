// The C interface of the library. Tensors are dense, row-major, float32 or (where `bf16`) bfloat16; weights and their
// gradients are float32, and null where absent.
#pragma once
#include <cstdint>

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

// the name of an operation of one path, as compiled with -DTITN_PATH=avx2: inner_block_forward_avx2
#define TITN_JOIN(operation, path) operation##_##path
#define TITN_NAME(operation, path) TITN_JOIN(operation, path)
#define PATH(operation) TITN_NAME(operation, TITN_PATH)

// results of the operations
enum { TITN_OK = 0, TITN_NO_MEMORY = 1 };
