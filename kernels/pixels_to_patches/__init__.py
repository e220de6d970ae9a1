"""The pixels of every patch, normalised and projected, added to the patch's own row.

For B images of N patches of L pixels with C channels, and T >= N + 1 patch rows of width D (TNT, arXiv:2103.00112,
equation 2):

    r = flatten(LN_C(pixels)) W^T + b                [B, N, D], LN over the C channels of each pixel, W [D, L C]
    y = patches;  y[:, 1 : N + 1] += r               row 0 (the class token) and the rows behind N as they are

Statistics, sums and the gradients of all parameters are float32 whatever the inputs are. The result is a new tensor in
the dtype of patches. With dR the rows 1..N of dy, and h the normalised pixels before gamma and beta,

    dpatches = dy        dW = dR^T flatten(LN(pixels))        db = sum dR        g = dR W, seen as [B, N, L, C]
    dbeta = sum g        dgamma = sum g h                     dpixels = LayerNorm's backward of (g gamma)

Backend "triton" needs neither the normalised pixels nor g in memory. It takes H = dR^T flatten(h) [D, L C], from which
dW = gamma H + beta db (gamma and beta repeated for every pixel), and dgamma and dbeta are the sums of W H and W db over
d and l: the parameters' gradients cost one product and no sums over rows. Backend "native" (csrc/pixels_to_patches.cpp)
does the same on a CPU in float32, the norm of several patches side by side.
"""

from titn.kernels.pixels_to_patches.op import passing_pixels, pixels_to_patches

__all__ = ["passing_pixels", "pixels_to_patches"]
