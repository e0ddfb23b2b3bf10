"""Small Triton kernels, one a feature of the language, that show which opcodes the compiler makes of it."""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice


@triton.jit
def unary(x, y, F: tl.constexpr, B: tl.constexpr):
    """y = F(x): an attribute of ``tl`` or of libdevice."""
    at = tl.arange(0, B)
    tl.store(y + at, F(tl.load(x + at)))


@triton.jit
def binary(x, z, y, F: tl.constexpr, B: tl.constexpr):
    """y = F(x, z)."""
    at = tl.arange(0, B)
    tl.store(y + at, F(tl.load(x + at), tl.load(z + at)))


@triton.jit
def convert(x, y, B: tl.constexpr):
    """y = x in y's dtype."""
    at = tl.arange(0, B)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@triton.jit
def integers(a, b):
    """Division towards zero, remainders, shifts, comparisons, a product's upper half."""
    r = a // b + (a % b) * 3 - ((a << 2) ^ (b >> 1))
    r += tl.where((a < b) | (a == 7), a & b, ~a | b)
    return tl.maximum(r, tl.minimum(a, b)) + tl.abs(b)


@triton.jit
def arithmetic(a, b):
    """Every operation of floats that is exact to the bit, with FMA off."""
    r = a * b + a / b - tl.where(a > b, a, b)
    return tl.maximum(r, tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def clamped(a, b):
    return tl.clamp(a, -b, b)


@triton.jit
def plus(a, b):
    return a + b


@triton.jit
def affine(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def rows(x, y, F: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    """y = F(x), of [R, B] elements."""
    at = tl.arange(0, R)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(y + at, F(tl.load(x + at)))


@triton.jit
def sorted_rows(v):
    return tl.sort(v, descending=True)


@triton.jit
def summed_rows(v):
    return tl.cumsum(v, 1)


@triton.jit
def summed_columns(v):
    return tl.cumsum(v, 0, reverse=True)


@triton.jit
def recurrence(v):
    _, r = tl.associative_scan((v, v), 1, affine)
    return r


@triton.jit
def transposed_twice(v):
    return tl.trans(tl.trans(v) * 2)


@triton.jit
def flipped(v):
    return tl.flip(v, 1)


@triton.jit
def interleaved(v):
    a, b = tl.split(tl.reshape(v, [v.shape[0], v.shape[1] // 2, 2]))
    return tl.reshape(tl.join(-b, a), [v.shape[0], v.shape[1]])


@triton.jit
def gathered(v):
    index = (tl.arange(0, v.shape[1])[None, :] * 3 + tl.arange(0, v.shape[0])[:, None]) % v.shape[1]
    return tl.gather(v, index, 1)


@triton.jit
def reductions(x, largest, where, total, odd, R: tl.constexpr, B: tl.constexpr):
    """Maximum with its index, minimum's index, sum and exclusive or, of rows."""
    row = tl.arange(0, R)
    v = tl.load(x + row[:, None] * B + tl.arange(0, B)[None, :])
    best, index = tl.max(v, 1, return_indices=True)
    tl.store(largest + row, best)
    tl.store(where + row, index + tl.argmin(v, 1))
    tl.store(total + row, tl.sum(v, 1))
    tl.store(odd + row, tl.xor_sum(v.to(tl.int32), 1))


@triton.jit
def histogram(x, y, n, B: tl.constexpr, BINS: tl.constexpr):
    at = tl.arange(0, B)
    tl.store(y + tl.arange(0, BINS), tl.histogram(tl.load(x + at), BINS, mask=at < n))


@triton.jit
def concatenated(x, y, B: tl.constexpr):
    v = tl.load(x + tl.arange(0, B))
    both = tl.cat(v, v, can_reorder=True)
    tl.store(y + tl.arange(0, 2 * B), both)


@triton.jit
def pipelined(x, w, y, n, STAGES: tl.constexpr, B: tl.constexpr):
    """Dot products of rows with w, a block at a time, with loads STAGES - 1 blocks ahead."""
    total = tl.zeros([B], tl.float32)
    for first in tl.range(0, n, B, num_stages=STAGES):
        at = first + tl.arange(0, B)
        a = tl.load(x + tl.program_id(0) * n + at, mask=at < n, other=0.0)
        total += a.to(tl.float32) * tl.load(w + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(y + tl.program_id(0), tl.sum(total))


@triton.jit
def atomics(x, index, y, old, F: tl.constexpr, B: tl.constexpr):
    """Each element of x goes to the element of y that its index names."""
    at = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(old + at, F(y + tl.load(index + at), tl.load(x + at)))


@triton.jit
def adjacent_sums(x, y, B: tl.constexpr):
    """Programs add their rows to one: neighbouring elements, in vectors where the target has them."""
    at = tl.arange(0, B)
    tl.atomic_add(y + at, tl.load(x + tl.program_id(0) * B + at))


@triton.jit
def tickets(counter, y):
    tl.store(y + tl.atomic_add(counter, 1), tl.program_id(0))


@triton.jit
def compare_and_swap(x, y, old):
    """The first program of those that find 0 writes its number."""
    at = tl.program_id(0) % 4
    tl.store(old + tl.program_id(0), tl.atomic_cas(y + at, 0, tl.load(x + tl.program_id(0))))


@triton.jit
def locked(x, lock, y, RELEASE: tl.constexpr, B: tl.constexpr):
    """Programs add their sums to y, one after the other."""
    total = tl.sum(tl.load(x + tl.program_id(0) * B + tl.arange(0, B)))
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    value = tl.load(y)
    tl.debug_barrier()
    tl.store(y, value + total)
    tl.debug_barrier()
    if RELEASE:
        tl.atomic_xchg(lock, 0)


@triton.jit
def last_program(x, partial, counter, y, B: tl.constexpr, N: tl.constexpr, SEM: tl.constexpr):
    """The last program to be done adds up what all have left behind."""
    tl.store(partial + tl.program_id(0), tl.sum(tl.load(x + tl.program_id(0) * B + tl.arange(0, B))))
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem=SEM) == N - 1:
        tl.store(y, tl.sum(tl.load(partial + tl.arange(0, N))))


@triton.jit
def asserted(x, y, limit, B: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + at)
    tl.device_assert(v < limit, "out of range")
    tl.store(y + at, v)


@triton.jit
def random_numbers(y, z, seed, B: tl.constexpr):
    at = tl.arange(0, B)
    tl.store(y + at, tl.rand(seed, at))
    tl.store(z + at, tl.randint(seed, at))


@triton.jit
def normal_numbers(y, seed, B: tl.constexpr):
    at = tl.arange(0, B)
    tl.store(y + at, tl.randn(seed, at))


@triton.jit
def inline(x, y, ASM: tl.constexpr, PACK: tl.constexpr, B: tl.constexpr):
    """y = ASM(x), PACK elements to a register of 32 bits."""
    at = tl.arange(0, B)
    v = tl.load(x + at)
    r = tl.inline_asm_elementwise(ASM, "=r,r", [v], dtype=v.dtype, is_pure=True, pack=PACK)
    tl.store(y + at, r)


@triton.jit
def branches(x, y, B: tl.constexpr):
    """Loops and branches by scalars that differ between programs."""
    at = tl.arange(0, B)
    total = tl.zeros([B], tl.int32)
    n = tl.load(x + tl.program_id(0))
    start = n
    while n > 0:
        total += tl.where(at % 3 == n % 3, n, 1)
        n = n // 2
        if n == 3:
            total += 7
    if start > 4:
        total = total * 2
    tl.store(y + tl.program_id(0) * B + at, total)


@triton.jit
def persistent_softmax(x, y, n, B: tl.constexpr):
    for row in range(tl.program_id(0), n, tl.num_programs(0)):
        v = tl.load(x + row * B + tl.arange(0, B))
        e = tl.exp(v - tl.max(v, 0))
        tl.store(y + row * B + tl.arange(0, B), e / tl.sum(e, 0))


@triton.jit
def hinted(x, y, B: tl.constexpr):
    at = tl.arange(0, B)
    v = tl.load(x + at, eviction_policy="evict_first")
    v += tl.load(x + at, eviction_policy="evict_last") + tl.load(x + at, volatile=True)
    tl.store(y + at, v + tl.load(x + at, cache_modifier=".cg"), eviction_policy="evict_first")


@triton.jit
def blocks(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    at = (tl.program_id(0) * BM, 0)
    p = tl.make_block_ptr(x, (M, N), (N, 1), at, (BM, BN), (1, 0))
    q = tl.make_block_ptr(y, (M, N), (N, 1), at, (BM, BN), (1, 0))
    tl.store(q, tl.load(p, boundary_check=(0, 1)) * 2, boundary_check=(0, 1))


@triton.jit
def matrix_product(a, b, c, S: tl.constexpr):
    at = tl.arange(0, S)[:, None] * S + tl.arange(0, S)[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def tensor_descriptor(x, y, S: tl.constexpr):
    p = tl.make_tensor_descriptor(x, [S, S], [S, 1], [S, S])
    q = tl.make_tensor_descriptor(y, [S, S], [S, 1], [S, S])
    q.store([0, 0], p.load([0, 0]) * 2)


@triton.jit
def printed(x, B: tl.constexpr):
    tl.device_print("x", tl.load(x + tl.arange(0, B)))


FUNCTIONS = {
    "sin": tl.sin, "cos": tl.cos, "exp": tl.exp, "exp2": tl.exp2, "log": tl.log, "log2": tl.log2, "erf": tl.erf,
    "sqrt": tl.sqrt_rn, "rsqrt": tl.rsqrt, "floor": tl.floor, "ceil": tl.ceil, "abs": tl.abs, "sigmoid": tl.sigmoid,
    **{name: getattr(libdevice, name) for name in ("tanh", "tan", "expm1", "log1p", "acos", "atan", "sinh", "erfinv",
                                                   "lgamma", "rint", "trunc", "popc", "clz", "brev", "ffs")},
    "libdevice sin": libdevice.sin, "libdevice exp": libdevice.exp, "fast sin": libdevice.fast_sinf,
    "fast cos": libdevice.fast_cosf, "fast exp": libdevice.fast_expf, "fast log": libdevice.fast_logf,
}  # fmt: skip
PAIRS = {name: getattr(libdevice, name) for name in ("pow", "atan2", "hypot", "copysign", "fmod", "nextafter")}

ATOMICS = {name: getattr(tl, f"atomic_{name}") for name in ("add", "max", "min", "xchg", "and", "or", "xor")}

# Triton's cache on disk takes the text of what is no kernel: of a function of Triton's, its address, which differs
# between processes. 68 of 213 kernels were compiled anew for each target in each run of the tests.
for _function in (*FUNCTIONS.values(), *PAIRS.values(), *ATOMICS.values()):
    if not hasattr(_function, "cache_key"):
        _function.cache_key = f"{_function.__module__}.{_function.__qualname__}"
