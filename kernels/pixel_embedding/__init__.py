"""Images cut into the pixels of the pixel-level stream, each embedded from its square and its position in the patch.

For B images of C channels cut into N patches of M squares, S pixels wide (TNT, arXiv:2103.00112, section 2.1), all in
row-major order, a square flattened in the order channel, row, column:

    out[b, n, m] = W square(b, n, m) + bias + position[m]        [B, N, M, E], W [E, C S^2], position [M, E]

    dW = sum dout square^T        dposition[m] = sum over b and n of dout        dbias = sum over m of dposition

Sums are float32 whatever the dtype of the product. Backend "triton" reads the images where they lie, in one kernel
forward; its backward is one kernel and a sum of partial rows. It has no gradient of the images.
"""

from titn.kernels.pixel_embedding.op import pixel_embedding

__all__ = ["pixel_embedding"]
