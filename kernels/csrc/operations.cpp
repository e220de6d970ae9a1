// The operations of one path in one table.
#include "titn.h"

extern "C" {
int PATH(inner_block_forward)(const InnerBlock*, const void*, void*, void*);
int PATH(inner_block_backward)(const InnerBlock*, const void*, const void*, const void*, void*, float* const*);
int PATH(outer_attention_forward)(const OuterAttention*, const void*, void*, void*);
int PATH(outer_attention_backward)(const OuterAttention*, const void*, const void*, const void*, void*, float* const*);
int PATH(layernorm_mlp_forward)(const LayerNormMlp*, const void*, void*, void*);
int PATH(layernorm_mlp_backward)(const LayerNormMlp*, const void*, const void*, const void*, void*, float* const*);
int PATH(pixels_to_patches_forward)(const PixelsToPatches*, const void*, const void*, void*);
int PATH(pixels_to_patches_backward)(const PixelsToPatches*, const void*, const void*, void*, float* const*);

extern const Operations PATH(operations);
const Operations PATH(operations) = {
    PATH(inner_block_forward),       PATH(inner_block_backward),  PATH(outer_attention_forward),
    PATH(outer_attention_backward),  PATH(layernorm_mlp_forward), PATH(layernorm_mlp_backward),
    PATH(pixels_to_patches_forward), PATH(pixels_to_patches_backward),
};
}
