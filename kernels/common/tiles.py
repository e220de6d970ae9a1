# mypy: disable-error-code="no-untyped-def"
"""Device functions shared by the Triton kernels: reading and writing rows, products of small tiles, GELU, LayerNorm.

Tiles are [G, rows, columns]: G independent tiles, one to a warp, so that a batched `tl.dot` becomes one chain of `mma`
instructions per tile, and the result of one product is the operand of the next without leaving its registers wherever
the contraction runs over the columns of the former result. `transposed` serves the other cases.

FAST chooses inline PTX, which Triton's interpreter cannot run; without it the same mathematics runs in plain Triton.
"""

import triton
import triton.language as tl

from titn.kernels.common.device import interpreting

if interpreting():
    from titn.kernels.common.interpreter import mend

    mend()


@triton.jit
def load_tile(pointer, row, present, c, WIDTH: tl.constexpr):
    """Columns c of the rows of a matrix [n, WIDTH] from `pointer` on: [*row.shape, len(c)], 0 where there is none."""
    mask = tl.expand_dims(present, -1) & (c < WIDTH)
    return tl.load(pointer + (tl.expand_dims(row, -1) * WIDTH + c), mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, row, present, c, value, WIDTH: tl.constexpr):
    """Stores what `load_tile` reads, in the pointer's dtype."""
    mask = tl.expand_dims(present, -1) & (c < WIDTH)
    at = tl.expand_dims(row, -1) * WIDTH + c
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def vector(pointer, index, mask, default: tl.constexpr):
    """pointer[index] as float32; `default` where masked, and throughout where the parameter is absent."""
    if pointer is None:
        value = tl.full(index.shape, default, tl.float32)
    else:
        value = tl.load(pointer + index, mask=mask, other=default).to(tl.float32)
    return value


@triton.jit
def exp2(x, FAST: tl.constexpr):
    """2^x in float32; FAST: within 2 units in the last place, denormal results become 0."""
    if FAST:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    """1 / x in float32; FAST: within 1 unit in the last place."""
    if FAST:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = 1.0 / x
    return y


@triton.jit
def keep(x, mask, FAST: tl.constexpr):
    """x where the (broadcastable) mask holds, else 0; FAST and 16 bits: one `and` for two elements."""
    if FAST and x.dtype.primitive_bitwidth == 16:
        bits = tl.where(mask, -1, 0).to(tl.int16)
        kept = tl.inline_asm_elementwise(
            "and.b32 $0, $1, $2;", "=r,r,r", [x, bits], dtype=x.dtype, is_pure=True, pack=2
        )
    else:
        kept = tl.where(mask, x, 0.0)
    return kept


@triton.jit
def product(a, b, accumulator):
    """accumulator + a b, float32; float32 operands are multiplied as such, not in TF32."""
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def product0(a, b):
    """a b, float32; float32 operands are multiplied as such, not in TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def swap(x):
    """x with its last two dimensions exchanged: another view of the registers, for the right operand of a product."""
    return tl.permute(x, (0, 2, 1))


@triton.jit
def stacked(x, G: tl.constexpr):
    """[rows, columns] to [G, rows, columns], the same for every tile."""
    return tl.broadcast_to(x[None, :, :], (G, x.shape[0], x.shape[1]))


@triton.jit
def identity(N: tl.constexpr, G: tl.constexpr, dtype: tl.constexpr):
    """G identity matrices [G, N, N]."""
    i = tl.arange(0, N)
    return stacked(tl.where(i[:, None] == i[None, :], 1.0, 0.0).to(dtype), G)


@triton.jit
def transposed(x, eye):
    """The transpose of every tile, exact, as the product of `eye` with x^T.

    Two tensor-core instructions move a 16x16 tile; through shared memory it takes twice as many, and barriers.
    """
    return product0(eye, swap(x)).to(x.dtype)


@triton.jit
def gelu_tail(a, FAST: tl.constexpr):
    """Phi(-a), the normal distribution function, for a >= 0: 2^Q(a) with Q of degree 5 fitted to log2 Phi(-a).

    Largest error of Phi 7e-7 and of a Phi(-a) 7e-7 (weighted minimax fit on [0, 5.5], the polynomial falls beyond).
    """
    q = -5.00259252e-04 * a + 7.28237621e-03
    q = q * a - 5.23432365e-02
    q = q * a - 4.59414080e-01
    q = q * a - 1.15105205
    return exp2(q * a - 1.00000186, FAST)


@triton.jit
def gelu(h, FAST: tl.constexpr):
    """h Phi(h) of float32 h, error below 1e-6."""
    a = tl.abs(h)
    return tl.maximum(h, 0.0) - a * gelu_tail(a, FAST)


@triton.jit
def gelu_and_slope(h, FAST: tl.constexpr):
    """h Phi(h) and its derivative Phi(h) + h phi(h) of float32 h, errors below 1e-6."""
    a = tl.abs(h)
    tail = gelu_tail(a, FAST)
    density = exp2(h * h * -0.7213475204444817 - 1.3257480647361593, FAST)
    return tl.maximum(h, 0.0) - a * tail, tl.where(h < 0.0, tail, 1.0 - tail) + h * density


@triton.jit
def normalised(x, C: tl.constexpr, eps):
    """Rows of x [G, T, CP] (float32, 0 from column C) brought to mean 0 and variance 1 over C columns; 1 / deviation.

    eps is added to the variance; 1 / deviation is [G, T].
    """
    inside = tl.arange(0, x.shape[2]) < C
    centred = tl.where(inside[None, None, :], x - (tl.sum(x, 2) * (1.0 / C))[:, :, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 2) * (1.0 / C) + eps)
    return centred * scale[:, :, None], scale


@triton.jit
def sum_of_rows(partial, columns, mask, n, stride, BLOCK: tl.constexpr):
    """Sum over p < n of partial[p * stride + columns], float32, always in the same order.

    Rows p, p + BLOCK, ... are added one after the other, the BLOCK sums as a tree.
    """
    p = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, columns.shape[0]), tl.float32)
    for start in range(0, n, BLOCK):
        row = (start + p).to(tl.int64)
        total += tl.load(
            partial + row[:, None] * stride + columns[None, :], mask=(row < n)[:, None] & mask[None, :], other=0.0
        )
    return tl.sum(total, 0)
