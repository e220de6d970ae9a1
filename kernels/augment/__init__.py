"""The whole augmentation of a batch, from stored bytes to normalised floats, in one launch.

Every image i of a batch is made from row r of a table of choices, and its mixing partner from row q:

    x_r = operations of r's slots, first to last, on flip_r(crop_r(stored image of r))    bytes
    n(x) = x scale - offset                                                              float32, per channel
    out_i = n(x_r)                                                                       plain
            n(x_q inside box i, x_r elsewhere)                                           CutMix, arXiv 1905.04899
            n(x_r) lam_i + n(x_q) (1 - lam_i)                                            MixUp, arXiv 1710.09412

then rounded to the output's dtype. The crop takes S x S pixels at (top, left) of the stored image within a black border
of `padding` pixels. A row is int32: id, top, left, flip, and for every slot a code and six parameters:

     0 nothing        3 color       6 posterize      9 equalize
     1 affine         4 contrast    7 solarize      10 invert
     2 brightness     5 sharpness   8 autocontrast  11 erase

Parameters: of 1 the coefficients, in 1/65536 pixel, of the source's x = (a column + b row + c) and of its y, the
nearest pixel, black outside; of 2 to 5 the bits of a float32 factor; of 6 a bit mask; of 7 a threshold; of 11 top,
bottom, left, right (bottom and right excluded) and the byte to fill with.

Operations are Pillow's to the bit. Every rounding is one of the formulas': bytes are integers, blends
start + factor (value - start) are float32 and autocontrast float64, and no product is fused with a sum. The torch
pipeline (titn.pipelines) is the reference, and equal to the bit in every output, MixUp's included.

There is one backend, Triton. One program makes an image: its code differs from row to row without diverging threads. It
holds the image in registers and augments a partner only where a box or lam uses it. Whatever looks at a value alone (2,
4, 6 to 10) is a table of 256 packed pixels; what looks at neighbours or elsewhere gathers through shared memory.
"""

from titn.kernels.augment.op import augment, augment_reasons

__all__ = ["augment", "augment_reasons"]
