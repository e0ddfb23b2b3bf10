"""Same input, same bits: what a second call must give, with the same values arranged in another way.

Each check calls the candidate once more and compares with the first call bit by bit (NaN equal to NaN):

repeat            the same case in fresh memory
batch slice       one item of the batch alone, as views of the same strides
row permutation   batch items and tokens in another order, written into the memory of the first call, so that
                  what a candidate kept under an address is found out
layout            contiguous copies of all arguments
power of two      activations twice as large (and eps four times) give results of the same bits, or twice as large
zero gate         a gate of 0 returns the residual
other flags       another casting mode, pairing or scale constant, in the budget of that case: what a launch keeps
                  for tensors of these shapes must not keep the flags of the call before
zero modulation   scale = shift = 0, without weight and bias, is the plain norm: within its budget, for it may
                  be another kernel
side stream, graph replay    on CUDA; the replay where PyTorch's caching allocator is on

The contract asks the first three of every op set. On the CPU, PyTorch's own kernels cannot give all of it: they
have a vector body and a scalar tail, and the order of a sum follows the strides. So

* another layout must give the same bits where all arithmetic is in kernels that Triton's interpreter runs, for
  it has no vector width. Elsewhere, on CUDA too, the result is held to the error budget (torch 2.13, CPU:
  `torch.mean` over a strided last dimension differs from the contiguous one in the last bit);
* a slice or a permutation must give the same bits on CUDA, but of PyTorch's own sums and norms, which share a row
  out by how many there are; and on the CPU where the arithmetic is in such kernels, or in PyTorch of basic operations
  (`structure.GuardedAllocations.basic`). Elsewhere the budget again: an exponential, a complex product, a sum over
  elements apart has a form for the body and another for the tail. Measured on the CPU, of 12,000 slices and
  permutations each: torch's own functions composed gave other bits in 9, all of complex products; the reference ops
  in 2, both sums over a strided last dimension.

A check costs a call of the candidate. So that judging costs no more than truth and candidate do, each small case
gets one check, every other of them the repetition, and one in four of the larger cases gets one; which, its
seed decides. Any of them is a second call, and shows what is left of the first.
"""

import os
import zlib
from collections.abc import Callable

from validation.cases.case import Case
from validation.chains import bounds
from validation.errors import CannotExpress
from validation.judge import second_calls
from validation.judge.expected import CHAINED
from validation.judge.second_calls import OTHER_FLAGS, FirstCall, ReusedOutputError, plain_norm
from validation.ops import tracebacks

# Elements of the largest tensor up to which a case is small.
SMALL = 4096

# Checks that call with other strides, dtypes or forms (a batch of one has stride 0 in the modulation): on a GPU each
# may compile another kernel.
OTHER_KERNEL = ("batch slice", "layout", "zero gate", "zero modulation", "other flags")

# Names of the corners in which one of the checks is due begin so.
CORNER = "same bits: "

# Of twelve kernels so many get no such check: beside the 97 kernels of the largest op's first calls there is room for
# some 50 in 2,000 cases (`validation.parity.compile_keys`).
UNCHECKED = 7

# Set under compute-sanitizer, in `benchmarks/gpu_record.py`.
NO_CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"

# Regimes in which doubling neither overflows nor leaves what underflowed before.
SCALABLE = ("normal", "mean_offset", "outlier_channels", "dit")

CHECKS: dict[str, Callable[[FirstCall], str]] = {
    "repeat": second_calls.repeat,
    "batch slice": second_calls.batch_slice,
    "row permutation": second_calls.row_permutation,
    "layout": second_calls.layout,
    "power of two": second_calls.power_of_two,
    "zero gate": second_calls.zero_gate,
    "zero modulation": second_calls.zero_modulation,
    "other flags": second_calls.other_flags,
    "side stream": second_calls.side_stream,
    "graph replay": second_calls.graph_replay,
}


def failure(first: FirstCall) -> tuple[str, str] | None:
    """The first of the `due` checks that fails, and how, in words."""
    for name in due(first.case, first.device):
        try:
            words = CHECKS[name](first)
        except ReusedOutputError as error:
            words = str(error)
        except CannotExpress:
            continue
        except BaseException as error:  # whatever a candidate raises is its verdict
            if tracebacks.is_interrupt(error):
                raise
            words = f"raised {type(error).__name__}: {tracebacks.said(error)[:300]}{tracebacks.of_error(error)}"
        if words:
            return name, words
    return None


def due(case: Case, device: str) -> tuple[str, ...]:
    """The names of the checks that a case gets."""
    elements = max((spec.numel for spec in case.tensors.values()), default=0)
    if elements == 0:
        return ()
    applicable = [name for name in CHECKS if applies(name, case, device)]
    lot = zlib.crc32(f"{case.seed}/{case.op}/same bits".encode())
    share, check = divmod(lot, len(applicable))
    if elements <= SMALL:
        return ("repeat",) if share % 2 else (applicable[1 + lot % (len(applicable) - 1)],)
    return (applicable[check],) if share % 4 == 0 else ()


def affordable(case: Case) -> frozenset[str]:
    """The checks that a case may get where each kernel compiled for a first call may cost one more at most.

    The same for cases that one kernel computes: those that need no other kernel, and of `OTHER_KERNEL` one, or none
    (`UNCHECKED`).
    """
    kinds = sorted((n, t.dtype, len(t.shape), t.strides[-1:], t.offset % 8) for n, t in case.tensors.items())
    modes = sorted((name, value) for name, value in case.flags.items() if isinstance(value, bool | str))
    lot = zlib.crc32(f"{case.op} {kinds} {modes}".encode()) % (len(OTHER_KERNEL) + UNCHECKED)
    return frozenset(CHECKS).difference(OTHER_KERNEL) | {*OTHER_KERNEL[lot : lot + 1]}


def applies(name: str, case: Case, device: str) -> bool:
    """Whether a check can be made of a case."""
    known = case.op.removeprefix(CHAINED) in bounds.BOUNDS
    has_eps = "eps" in case.flags or "norm" not in case.op
    match name:
        case "power of two":
            # Not float16: a product may be subnormal on the way where twice the product is not.
            # Nor where one tensor is scale and shift, of which only the shift grows with x.
            shift = case.tensors.get("shift")
            alone = shift is None or shift != case.tensors.get("scale")
            return known and has_eps and alone and case.values in SCALABLE and case.dtype != "float16"
        case "zero gate":
            return known and "residual" in case.tensors
        case "zero modulation":
            return known and has_eps and plain_norm(case) != ""
        case "other flags":
            return any(flag in case.flags for flag in OTHER_FLAGS)
        case "side stream":
            return device == "cuda"
        case "graph replay":
            # Without its cache PyTorch allocates by cudaMalloc, which a capture refuses whatever the op.
            return device == "cuda" and NO_CACHING not in os.environ
    return True
