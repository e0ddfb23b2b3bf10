"""Same input, same bits: what a second call must give, with the same values arranged in another way.

Each check calls the candidate once more and compares with the first call bit by bit (NaN equal to NaN):

repeat            the same case in fresh memory
other settings    again in fresh memory, under settings of a caller's process that an op must not heed
                  (`validation.judge.settings`)
batch slice       one item of the batch alone, as views of the same strides
row permutation   batch items and tokens in another order, written into the memory of the first call, which
                  exposes a candidate that caches by address
layout            contiguous copies of all arguments
power of two      activations twice as large (and eps four times) give results of the same bits, or twice as large
zero gate         a gate of 0 returns the residual
other flags       another casting mode, pairing or scale constant, in the budget of that case: a launch may cache by
                  the tensors' shapes, but must not reuse the flags of the call before
zero modulation   scale = shift = 0, without weight and bias, is the plain norm: within its budget, for it may
                  be another kernel
side stream, graph replay    on CUDA; the replay where PyTorch's caching allocator is on

The contract asks every op set for the first three. On the CPU, PyTorch's own kernels cannot give all of it: they
have a vector body and a scalar tail, and the order of a sum follows the strides. So

* another layout must give the same bits where all arithmetic is in kernels that Triton's interpreter runs, for
  it has no vector width. Elsewhere, on CUDA too, the result is held to the error budget (torch 2.13, CPU:
  `torch.mean` over a strided last dimension differs from the contiguous one in the last bit);
* a slice or a permutation must give the same bits on CUDA, except for PyTorch's own sums and norms, which split a
  row by the number of rows. On the CPU it must where the arithmetic is in such kernels, or in PyTorch's basic
  operations (`structure.GuardedAllocations.basic`). Elsewhere the budget holds again: an exponential, a complex
  product or a sum over strided elements is computed one way in the body and another in the tail. Measured on the CPU,
  in 12,000 slices and permutations each: torch's own functions composed gave other bits in 9, all of complex
  products; the reference ops in 2, both sums over a strided last dimension.

A check costs a call of the candidate. To keep judging no dearer than truth and candidate, each small case gets one
check (every second one the repetition, half of them under other settings), and one in four of the larger cases gets
one; the case's seed decides which. Every check is a second call, so each shows state that the first left behind.

A case with wrong numbers is repeated before it is reported: if the second call gives other bits, the verdict is
NOT_REPRODUCIBLE, for whoever repeats the case may see it pass.
"""

import os
import zlib
from collections.abc import Callable

from validation.cases.case import Case
from validation.chains import bounds
from validation.errors import CannotExpress, NotExecutedError
from validation.judge import second_calls, settings
from validation.judge.expected import CHAINED
from validation.judge.oracle import WrongTruthError
from validation.judge.reference import ReferenceFailedError
from validation.judge.second_calls import OTHER_FLAGS, FirstCall, ReusedOutputError, ViolationError, plain_norm
from validation.ops import tracebacks
from validation.verdict import Status, Verdict

# A case is small if its largest tensor has at most this many elements.
SMALL = 4096

# Checks that pass other strides, dtypes or forms (a batch of one has stride 0 in the modulation): on a GPU each may
# compile another kernel.
OTHER_KERNEL = ("batch slice", "layout", "zero gate", "zero modulation", "other flags")

# Prefix of the names of corners in which one of the checks is due.
CORNER = "same bits: "

# Of every fifteen kernels, this many get no such check: the first calls of the largest op compile 105 kernels, which
# leaves room for some 45 more in 2,000 cases (`validation.parity.compile_keys`).
UNCHECKED = 10

# Set under compute-sanitizer, in `benchmarks/gpu_record.py`.
NO_CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"

# Regimes in which doubling neither overflows nor makes an underflowed value representable.
SCALABLE = ("normal", "mean_offset", "outlier_channels", "dit")

APPROXIMATIONS, THREAD_ORDER = "approximations", "thread order"

CHECKS: dict[str, Callable[[FirstCall], str | Verdict]] = {
    "repeat": second_calls.repeat,
    "other settings": settings.other_settings,
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
# No lot decides these: the judge asks where a kernel that is executed approximates, or leaves an order of threads.
OF_EXECUTED: dict[str, Callable[[FirstCall], str | Verdict]] = {
    APPROXIMATIONS: second_calls.approximations,
    THREAD_ORDER: second_calls.thread_order,
}


# Checks that make the same call again.
REPETITIONS = ("repeat", "other settings")

# What a check that fails has found, beside "another result than that of the first call".
FOUND = {
    "repeat": "a second call gives other bits",
    "other settings": "called under other settings of the process",
    "batch slice": "a batch item alone gives other bits",
    "row permutation": "rows in another order give other bits",
    "layout": "contiguous copies give other bits",
    "power of two": "activations twice as large give other bits",
    THREAD_ORDER: "with the threads in the other order it gives other bits",
    "side stream": "another stream gives other bits",
    "graph replay": "a replayed graph gives other bits",
}


def failure(first: FirstCall, checks: tuple[str, ...] | None = None) -> tuple[str, Status, str] | None:
    """The first of some checks that fails, the status that says what it found, and how, in words.

    Args:
        first: the call to compare with.
        checks: their names; None: those that are `due`.

    NOT_REPRODUCIBLE is another result for the same numbers. A wrong result for others (a gate of 0, other flags) is
    what the judge calls it for those: the call before may have caused it, or the op is always wrong there.
    """
    for name in due(first.case, first.device) if checks is None else checks:
        same = name in FOUND
        status = Status.NOT_REPRODUCIBLE if same else Status.INCORRECT_NUMERICAL
        try:
            found = (CHECKS | OF_EXECUTED)[name](first)
            if isinstance(found, Verdict):
                status, words = found.status, found.reason
            else:
                words = f"{FOUND[name]}: {found}" if found and same else found
        except ReusedOutputError as error:
            status, words = Status.NOT_REPRODUCIBLE, str(error)
        except CannotExpress:
            continue
        except ViolationError as error:
            status, words = error.verdict.status, error.verdict.reason
        except (ReferenceFailedError, WrongTruthError, NotExecutedError):
            raise
        except BaseException as error:  # whatever a candidate raises is its verdict
            if tracebacks.is_interrupt(error):
                raise
            status = Status.NOT_REPRODUCIBLE if same else Status.RUNTIME_ERROR
            words = f"raised {type(error).__name__}: {tracebacks.said(error)[:300]}{tracebacks.of_error(error)}"
        if words:
            return name, status, words
    return None


def due(case: Case, device: str) -> tuple[str, ...]:
    """The names of the checks that a case gets."""
    elements = max((spec.numel for spec in case.tensors.values()), default=0)
    if elements == 0:
        return ()
    repeat = REPETITIONS[zlib.crc32(f"{case.seed}/{case.op}/settings".encode()) % 2]
    applicable = [repeat, *(name for name in CHECKS if name not in REPETITIONS and applies(name, case, device))]
    lot = zlib.crc32(f"{case.seed}/{case.op}/same bits".encode())
    share, check = divmod(lot, len(applicable))
    if elements <= SMALL:
        return (repeat,) if share % 2 else (applicable[1 + lot % (len(applicable) - 1)],)
    return (applicable[check],) if share % 4 == 0 else ()


def affordable(case: Case) -> frozenset[str]:
    """The checks that a case may get if each kernel compiled for a first call may cost at most one more.

    Cases that one kernel computes get the same ones: all that need no other kernel, and one or none (`UNCHECKED`) of
    `OTHER_KERNEL`.
    """
    kinds = sorted((n, t.dtype, len(t.shape), t.strides[-1:], t.offset % 8) for n, t in case.tensors.items())
    modes = sorted((name, value) for name, value in case.flags.items() if isinstance(value, bool | str))
    lot = zlib.crc32(f"{case.op} {kinds} {modes}".encode()) % (len(OTHER_KERNEL) + UNCHECKED)
    return frozenset(CHECKS).difference(OTHER_KERNEL) | {*OTHER_KERNEL[lot : lot + 1]}


def applies(name: str, case: Case, device: str) -> bool:
    """Whether a check can be made on a case."""
    known = case.op.removeprefix(CHAINED) in bounds.BOUNDS
    has_eps = "eps" in case.flags or "norm" not in case.op
    match name:
        case "power of two":
            # Not float16: an intermediate product may be subnormal where twice the product is not.
            # Nor if one tensor is both scale and shift: only the shift grows with x.
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
