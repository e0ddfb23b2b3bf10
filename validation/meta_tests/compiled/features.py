"""Runs the kernels of `feature_kernels` as compiled for a target and compares each with torch.

python -m validation.meta_tests.compiled.features sm_90
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.executing import executing, how
from validation.meta_tests.compiled import feature_kernels as kernels

N = 512
# What each call gives: outputs, what they should be, and the largest error over the largest value.
Feature = Callable[[], tuple[Tensor, Tensor, float]]
random = torch.Generator().manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)


def whole(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(low, high, shape, generator=random, dtype=torch.int64).to(dtype)


def _unary(name: str, x: Tensor, want: Callable[[Tensor], Tensor], bound: float) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        result = want(x.double() if x.is_floating_point() else x).to(x.dtype)
        y = torch.empty_like(x)
        kernels.unary[(1,)](x, y, kernels.FUNCTIONS[name], len(x))
        return y, result, bound

    return call


def _of_bits(count: Callable[[str], int], x: Tensor) -> Tensor:
    return torch.tensor([count(f"{v & 0xFFFFFFFF:032b}") for v in x.tolist()])


def _elementwise() -> Iterator[tuple[str, Feature]]:
    """Functions of one element. Errors of libdevice are a few units in the last place of float32, 2^-24 each."""
    x, positive, unit = normal(N), normal(N).abs() + 0.01, torch.rand(N, generator=random) * 1.9 - 0.95
    large = normal(N) * torch.logspace(0, 30, N)  # reduced by Payne and Hanek's method
    few, fast = 2.0**-21, 2.0**-18
    functions: list[tuple[str, Tensor, Callable[[Tensor], Tensor], float]] = [
        ("sin", large, torch.sin, few), ("cos", large, torch.cos, few), ("libdevice sin", large, torch.sin, few),
        ("tan", x, torch.tan, few), ("exp", x, torch.exp, few), ("exp2", x, torch.exp2, few),
        ("libdevice exp", x, torch.exp, few), ("expm1", x, torch.expm1, few), ("log", positive, torch.log, few),
        ("log2", positive, torch.log2, few), ("log1p", positive, torch.log1p, few), ("erf", x, torch.erf, few),
        ("erfinv", unit, torch.erfinv, few), ("lgamma", positive, torch.lgamma, few), ("tanh", x, torch.tanh, few),
        ("acos", unit, torch.acos, few), ("atan", x, torch.atan, few), ("sinh", x, torch.sinh, few),
        ("sigmoid", x, torch.sigmoid, few), ("rsqrt", positive, torch.rsqrt, few), ("sqrt", positive, torch.sqrt, 0),
        ("floor", x, torch.floor, 0), ("ceil", x, torch.ceil, 0), ("rint", x * 9, torch.round, 0),
        ("trunc", x * 9, torch.trunc, 0), ("abs", x, torch.abs, 0), ("fast sin", x, torch.sin, fast),
        ("fast cos", x, torch.cos, fast), ("fast exp", x, torch.exp, fast), ("fast log", positive, torch.log, fast),
    ]  # fmt: skip
    for name, values, want, bound in functions:
        yield name, _unary(name, values, want, bound)
    for name in ("exp", "erf", "floor"):
        yield f"{name} float64", _unary(name, positive.double(), getattr(torch, name), 0 if name == "floor" else 2e-16)
    bits = whole(-(2**31), 2**31, N)
    counted: dict[str, Callable[[str], int]] = {
        "popc": lambda b: b.count("1"), "clz": lambda b: len(b) - len(b.lstrip("0")),
        "ffs": lambda b: b[::-1].find("1") + 1, "brev": lambda b: int(b[::-1], 2) - (int(b[-1]) << 32),
    }  # fmt: skip
    for name, count in counted.items():
        yield name, _unary(name, bits, partial(_of_bits, count), 0)


def _binary(function: Any, x: Tensor, z: Tensor, want: Callable[[Tensor, Tensor], Tensor], bound: float) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        y = torch.empty_like(x)
        kernels.binary[(1,)](x, z, y, function, len(x), enable_fp_fusion=False)
        return y, want(x, z), bound

    return call


def _arithmetic(a: Tensor, b: Tensor) -> Tensor:
    wide = a.dtype if a.dtype == torch.float64 else torch.float32
    # Triton computes a quotient of 16 bits in float32, and rounds it.
    quotient = (a.to(wide) / b.to(wide)).to(a.dtype)
    return torch.maximum(a * b + quotient - torch.where(a > b, a, b), torch.minimum(a, b))


def _integers(a: Tensor, b: Tensor) -> Tensor:
    quotient = torch.div(a, b, rounding_mode="trunc")
    r = quotient + (a - quotient * b) * 3 - ((a << 2) ^ (b >> 1))
    r += torch.where((a < b) | (a == 7), a & b, ~a | b)
    return torch.maximum(r, torch.minimum(a, b)) + b.abs()


def _pairs() -> Iterator[tuple[str, Feature]]:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        a, b = normal(N, dtype=dtype), normal(N, dtype=dtype)
        bound = 0 if dtype == torch.float64 else torch.finfo(dtype).eps  # div.full, then one rounding
        yield f"arithmetic {dtype}", _binary(kernels.arithmetic, a, b, _arithmetic, bound)
    for dtype in (torch.float16, torch.float32):
        a, b = normal(N, dtype=dtype), normal(N, dtype=dtype).abs()
        yield f"clamp {dtype}", _binary(kernels.clamped, a, b, lambda a, b: torch.clamp(a, -b, b), 0)
    for dtype, top in ((torch.int8, 100), (torch.int16, 30000), (torch.int32, 2**31 - 1), (torch.int64, 2**62)):
        a, b = whole(-top, top, N, dtype=dtype), whole(1, top, N, dtype=dtype)
        yield f"integers {dtype}", _binary(kernels.integers, a, b, _integers, 0)
    few = 2.0**-21
    for name, bound in {"pow": few, "atan2": few, "hypot": few, "copysign": 0.0, "fmod": 0.0, "nextafter": 0.0}.items():
        x, z = (normal(N).abs() * 3, normal(N)) if name == "pow" else (normal(N), normal(N))
        yield name, _binary(kernels.PAIRS[name], x, z, getattr(torch, name), bound)


def _converted(x: Tensor, dtype: torch.dtype) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        y = torch.empty(len(x), dtype=dtype)
        kernels.convert[(1,)](x, y, len(x))
        want = x.to(dtype)
        return (y.float(), want.float(), 0) if dtype.itemsize == 1 and dtype.is_floating_point else (y, want, 0)

    return call


def _conversions() -> Iterator[tuple[str, Feature]]:
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    whole_numbers = (torch.int8, torch.int16, torch.int32, torch.int64)
    small = (torch.float8_e4m3fn, torch.float8_e5m2)
    for of in floats:
        for to in (*floats, *whole_numbers, *(small if of != torch.float64 else ())):
            if to != of:
                yield f"{of} to {to}", _converted((normal(N) * 20).to(of), to)
    for of in (*whole_numbers, torch.uint8, *small):
        for to in floats if of not in small else floats[:3]:
            yield f"{of} to {to}", _converted(whole(-100, 100, N).float().to(of) if of != torch.uint8 else
                                              whole(0, 255, N).to(of), to)  # fmt: skip


def _rows(function: Any, x: Tensor, want: Tensor, bound: float = 0) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        y = torch.empty_like(x)
        kernels.rows[(1,)](x, y, function, *x.shape)
        return y, want, bound

    return call


def _shapes() -> Iterator[tuple[str, Feature]]:
    R, B = 8, 128
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64):
        x = whole(-4, 4, R, B).to(dtype) if not dtype.is_floating_point else normal(R, B, dtype=dtype)
        small = whole(-4, 4, R, B).to(dtype)  # sums of them are exact
        index = (torch.arange(B)[None, :] * 3 + torch.arange(R)[:, None]) % B
        pair = x.reshape(R, B // 2, 2)
        for name, function, v, want in (
            ("sort", kernels.sorted_rows, x, x.sort(-1, descending=True)[0]),
            ("cumsum of rows", kernels.summed_rows, small, small.double().cumsum(1).to(dtype)),
            ("cumsum of columns", kernels.summed_columns, small, small.double().flip(0).cumsum(0).flip(0).to(dtype)),
            ("transposed twice", kernels.transposed_twice, small, small * 2),
            ("flip", kernels.flipped, x, x.flip(1)),
            ("join and split", kernels.interleaved, x, torch.stack([-pair[..., 1], pair[..., 0]], -1).reshape(R, B)),
            ("gather", kernels.gathered, x, x.gather(1, index)),
        ):
            yield f"{name} {dtype}", _rows(function, v, want)
    x, want = whole(-1, 2, R, B).float(), torch.zeros(R, B)
    for n in range(B):
        want[:, n] = x[:, n] * want[:, n - 1] + x[:, n] if n else x[:, 0]
    yield "associative scan", _rows(kernels.recurrence, x, want)


def _reductions(dtype: torch.dtype) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        x = whole(-1, 2, 8, 128).to(dtype) if dtype.itemsize == 2 else whole(-50, 50, 8, 128).to(dtype)  # exact sums
        wide = torch.int64 if dtype == torch.int64 else torch.int32
        best, total = torch.empty(8, dtype=dtype), torch.empty(8, dtype=dtype)
        where, odd = torch.empty(8, dtype=torch.int32), torch.empty(8, dtype=torch.int32)
        kernels.reductions[(1,)](x, best, where, total, odd, 8, 128)
        bits = [int(np.bitwise_xor.reduce(row)) for row in x.to(torch.int32).numpy()]
        first = torch.tensor([row.index(max(row)) + row.index(min(row)) for row in x.tolist()])
        got = torch.stack([best.to(wide), where.to(wide), total.to(wide), odd.to(wide)])
        sums = x.sum(1).to(wide) if dtype.is_floating_point else x.to(wide).sum(1).to(wide)
        return got, torch.stack([x.amax(1).to(wide), first.to(wide), sums, torch.tensor(bits).to(wide)]), 0

    return call


def _histogram() -> tuple[Tensor, Tensor, float]:
    x, y = whole(0, 64, 1024), torch.empty(64, dtype=torch.int32)
    kernels.histogram[(1,)](x, y, 1000, 1024, 64)
    return y, torch.bincount(x[:1000], minlength=64).int(), 0


def _concatenated() -> tuple[Tensor, Tensor, float]:
    x, y = whole(-99, 99, N), torch.empty(2 * N, dtype=torch.int32)
    kernels.concatenated[(1,)](x, y, N)
    return y.sort()[0], torch.cat([x, x]).sort()[0], 0


def _pipelined(dtype: torch.dtype, stages: int) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        x, w, y = whole(-4, 5, 3, 2000).to(dtype), whole(-4, 5, 2000).to(dtype), torch.empty(3)
        kernels.pipelined[(3,)](x, w, y, 2000, stages, 512)
        return y, x.float() @ w.float(), 0

    return call


def _scattered(name: str, x: Tensor) -> Feature:
    """Elements of x combined into 16 elements; numbers so small that sums are exact."""

    def call() -> tuple[Tensor, Tensor, float]:
        index, y, old = whole(0, 16, 1024), torch.zeros(16, dtype=x.dtype), torch.zeros_like(x)
        kernels.atomics[(4,)](x, index, y, old, kernels.ATOMICS[name], 256)
        combine: Any = {"add": lambda a, b: a + b, "max": max, "min": min, "and": lambda a, b: a & b,
                        "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "xchg": lambda _, b: b}[name]  # fmt: skip
        left = [torch.zeros(1, dtype=x.dtype).item() for _ in range(16)]
        for i, v in zip(index.tolist(), x.tolist(), strict=True):
            left[i] = combine(left[i], v)
        if name == "xchg":  # what was put there is found once or left
            return torch.cat([y, old]).sort()[0], torch.cat([x, torch.zeros_like(y)]).sort()[0], 0
        return y, torch.tensor(left, dtype=x.dtype), 0

    return call


def _adjacent(dtype: torch.dtype) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        x, y = whole(-4, 5, 4, 1024).to(dtype), torch.zeros(1024, dtype=dtype)
        kernels.adjacent_sums[(4,)](x, y, 1024)
        return y, x.double().sum(0).to(dtype), 0

    return call


def _atomics() -> Iterator[tuple[str, Feature]]:
    for dtype in (torch.int32, torch.int64, torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = whole(-8, 8, 1024).to(dtype)
        for name in ("add", "max", "min", "xchg"):
            if name == "add" or dtype.itemsize > 2:
                yield f"atomic {name} {dtype}", _scattered(name, x)
        if not dtype.is_floating_point:
            for name in ("and", "or", "xor"):
                yield f"atomic {name} {dtype}", _scattered(name, x)
        yield f"adjacent atomic sums {dtype}", _adjacent(dtype)

    def tickets() -> tuple[Tensor, Tensor, float]:
        counter, y = torch.zeros(1, dtype=torch.int32), torch.zeros(40, dtype=torch.int32)
        kernels.tickets[(40,)](counter, y)
        return torch.cat([y, counter]), torch.arange(41, dtype=torch.int32), 0

    def swaps() -> tuple[Tensor, Tensor, float]:
        x, y, old = (
            torch.arange(1, 13, dtype=torch.int32),
            torch.zeros(4, dtype=torch.int32),
            torch.zeros(12, dtype=torch.int32),
        )
        kernels.compare_and_swap[(12,)](x, y, old)
        return torch.cat([y, old]), torch.cat([x[:4], torch.zeros(4), x[:4], x[:4]]).int(), 0

    def lock() -> tuple[Tensor, Tensor, float]:
        x, y = whole(0, 9, 6, 256).float(), torch.zeros(1)
        kernels.locked[(6,)](x, torch.zeros(1, dtype=torch.int32), y, True, 256)
        return y, x.sum().reshape(1), 0

    yield "tickets", tickets
    yield "compare and swap", swaps
    yield "lock", lock
    for sem in ("acq_rel", "relaxed"):
        yield f"last program {sem}", partial(_last, sem)


def _last(sem: str) -> tuple[Tensor, Tensor, float]:
    x, partial, y = whole(0, 9, 8, 256).float(), torch.zeros(8), torch.zeros(1)
    kernels.last_program[(8,)](x, partial, torch.zeros(1, dtype=torch.int32), y, 256, 8, sem)
    return y, x.sum().reshape(1), 0


def _asserted(limit: float) -> Feature:
    def call() -> tuple[Tensor, Tensor, float]:
        x, y = torch.arange(N, dtype=torch.float32), torch.zeros(N)
        kernels.asserted[(2,)](x, y, limit, N // 2, debug=True)
        return y, x, 0

    return call


def _philox(seed: int, offset: int) -> tuple[int, int, int, int]:
    """Philox 4x32 in 10 rounds (Salmon et al., 2011), with Triton's constants."""
    c, k = [offset, 0, 0, 0], [seed, 0]
    for _ in range(10):
        a, b = 0xCD9E8D57 * c[2], 0xD2511F53 * c[0]
        c = [a >> 32 ^ c[1] ^ k[0], a & 0xFFFFFFFF, b >> 32 ^ c[3] ^ k[1], b & 0xFFFFFFFF]
        k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return c[0], c[1], c[2], c[3]


def _random() -> tuple[Tensor, Tensor, float]:
    y, z = torch.empty(N), torch.empty(N, dtype=torch.int32)
    kernels.random_numbers[(1,)](y, z, 42, N)
    want = torch.tensor([_philox(42, n)[0] for n in range(N)]).to(torch.int32)
    positive = torch.where(want < 0, -want - 1, want).double() * 4.6566127342e-10
    return torch.cat([y.double(), z.double()]), torch.cat([positive.float().double(), want.double()]), 2.0**-24


def _normal() -> tuple[Tensor, Tensor, float]:
    y = torch.empty(4096)
    kernels.normal_numbers[(1,)](y, 7, 4096)
    return torch.stack([y.mean(), y.std()]), torch.tensor([0.0, 1.0]), 0.06  # 4 sigma of the mean of 4096 numbers


def _inline(name: str, asm: str, x: Tensor, pack: int, want: Tensor, bound: float) -> tuple[str, Feature]:
    def call() -> tuple[Tensor, Tensor, float]:
        y = torch.empty_like(x)
        kernels.inline[(1,)](x, y, asm, pack, len(x))
        return y, want, bound

    return f"inline {name}", call


def _inlined() -> Iterator[tuple[str, Feature]]:
    x = normal(N)
    yield _inline("lg2", "lg2.approx.f32 $0, $1;", x.abs(), 1, x.abs().log2(), 2.0**-21)
    yield _inline("tanh", "tanh.approx.f32 $0, $1;", x, 1, x.tanh(), 2.0**-10.9)
    for dtype in (torch.float16, torch.bfloat16):
        name = "f16x2" if dtype == torch.float16 else "bf16x2"
        half = x.to(dtype)
        yield _inline(f"tanh {name}", f"tanh.approx.{name} $0, $1;", half, 2, half.float().tanh().to(dtype), 2.0**-7)
    scopes = (
        "{ .reg .b32 t<3>; shl.b32 t0, $1, 3; and.b32 t1, t0, 0xff; shf.l.wrap.b32 t2, t1, $1, 4; xor.b32 $0, t0, t2; }"
    )
    v = whole(-(2**31), 2**31, N)
    wide = v.long() & 0xFFFFFFFF
    t0 = wide << 3 & 0xFFFFFFFF
    funnel = (wide << 4 | (t0 & 0xFF) >> 28) & 0xFFFFFFFF
    yield _inline("scopes", scopes, v, 1, (t0 ^ funnel).to(torch.int32), 0)


def _branches() -> tuple[Tensor, Tensor, float]:
    x, y = torch.arange(16, dtype=torch.int32), torch.empty(16, 256, dtype=torch.int32)
    kernels.branches[(16,)](x, y, 256)
    at, rows = torch.arange(256), []
    for start in range(16):
        total, n = torch.zeros(256, dtype=torch.int64), start
        while n > 0:
            total += torch.where(at % 3 == n % 3, n, 1)
            n //= 2
            total += 7 if n == 3 else 0
        rows.append(total * 2 if start > 4 else total)
    return y, torch.stack(rows).int(), 0


def _softmax() -> tuple[Tensor, Tensor, float]:
    x, y = normal(16, 256), torch.empty(16, 256)
    kernels.persistent_softmax[(3,)](x, y, 16, 256)
    return y, x.double().softmax(-1).float(), 2.0**-20


def _hinted() -> tuple[Tensor, Tensor, float]:
    x, y = whole(-9, 9, N).float(), torch.empty(N)
    kernels.hinted[(1,)](x, y, N)
    return y, 4 * x, 0


def _blocks() -> tuple[Tensor, Tensor, float]:
    x, y = normal(61, 50), torch.zeros(61, 50)
    kernels.blocks[(4,)](x, y, 61, 50, 16, 64)
    return y, 2 * x, 0


# What Triton does not compile for a target.
UNKNOWN = {"sm_80": ("float8_e4m3fn", "inline tanh bf16x2")}


def features(target: str) -> Iterator[tuple[str, Feature]]:
    """The features of a target by name."""
    missing = UNKNOWN.get(target, ())
    yield from ((name, call) for name, call in _features() if not any(part in name for part in missing))


def _features() -> Iterator[tuple[str, Feature]]:
    yield from _elementwise()
    yield from _pairs()
    yield from _conversions()
    yield from _shapes()
    for dtype in (torch.int32, torch.int64, torch.float32, torch.float16, torch.bfloat16):
        yield f"reductions {dtype}", _reductions(dtype)
    yield from {"histogram": _histogram, "cat": _concatenated}.items()
    for dtype in (torch.float32, torch.bfloat16):
        for stages in (1, 2, 4):
            yield f"pipelined {dtype} {stages}", _pipelined(dtype, stages)
    yield from _atomics()
    yield from {"assertion that holds": _asserted(1e9), "assertion that fails": _asserted(400.0)}.items()
    yield from {"rand": _random, "randn": _normal}.items()
    yield from _inlined()
    yield from {"branches": _branches, "softmax": _softmax, "cache hints": _hinted, "block pointers": _blocks}.items()


def refused() -> dict[str, Callable[[], None]]:
    """Features that are not executed."""
    a, b, c = (torch.zeros(64, 64, dtype=torch.bfloat16) for _ in range(3))
    out = torch.zeros(64, 64)
    return {
        "dot": lambda: kernels.matrix_product[(1,)](a, b, out, 64),
        "tensor descriptor": lambda: kernels.tensor_descriptor[(1,)](a, c, 64),
        "print": lambda: kernels.printed[(1,)](out, 64),
        "sin float64": lambda: kernels.unary[(1,)](out.double(), out.double(), kernels.FUNCTIONS["sin"], 64),
        "log float64": lambda: kernels.unary[(1,)](out.double(), out.double(), kernels.FUNCTIONS["log"], 64),
    }


def main(target: str) -> None:
    """Print, by feature, the error, the bound, violations and what depends on order; by refused feature, why."""
    import triton

    triton.set_allocator(lambda size, _alignment, _stream: torch.zeros(size, dtype=torch.int8))
    found: dict[str, Any] = {}
    for name, call in features(target):
        with how(races=True), executing(target) as runs:
            got, want, bound = call()
        assert got.dtype == want.dtype, (name, got.dtype, want.dtype)
        error = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30))
        found[name] = [error, bound, [str(v) for v in runs.violations], [*runs.unordered]]
    for name, fails in refused().items():
        try:
            with executing(target):
                fails()
        except NotExecutedError as error:
            found[f"refused {name}"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
