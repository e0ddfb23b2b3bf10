"""A second call under other settings, none of which an op's result may depend on: its dtypes fix what it computes.

A caller's process may run ops under autocast, in inference mode, with another default dtype, with deterministic
algorithms, or in a thread of its own. One call has all of these at once; only if it fails, each is tried alone, so that
the verdict names the one that matters.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from validation.cases.case import Case
from validation.device.threads import one_thread
from validation.errors import CannotExpress, NotExecutedError
from validation.judge.bits import Outputs, difference
from validation.judge.expected import outputs_of
from validation.judge.second_calls import FirstCall, ReusedOutputError, ViolationError
from validation.ops import reference_op, tracebacks

DETERMINISTIC, INFERENCE, THREAD = "with deterministic algorithms", "in inference mode", "in another thread"
DEFAULT_DTYPES = (torch.float64, torch.bfloat16)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    # `torch.use_deterministic_algorithms` imports torch._inductor: 0.7 s of processor time in a process.
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def default_dtype(case: Case) -> torch.dtype:
    """The default dtype under which the case's check calls the op."""
    return DEFAULT_DTYPES[case.seed % len(DEFAULT_DTYPES)]


def _contexts(first: FirstCall) -> dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]:
    """The settings by name: each enters a context, in the thread of the call."""
    dtype = default_dtype(first.case)
    return {
        f"with {str(dtype)[6:]} as the default dtype": lambda: _default_dtype(dtype),
        DETERMINISTIC: _deterministic,
        INFERENCE: torch.inference_mode,
        "under autocast": lambda: torch.autocast(first.device, torch.bfloat16),
        THREAD: one_thread,
    }


def other_settings(first: FirstCall) -> str:
    """The same case under all settings at once; words that name the one under which the result is another.

    Who asks for deterministic algorithms asks for other ones: those may sum in another order (Inductor then takes
    another block size), and the error budget holds, not the bits.
    """
    names = tuple(_contexts(first))
    together = _difference(first, names)
    if not together:
        return ""
    for name in names:
        alone = _difference(first, (name,), bits=name != DETERMINISTIC)
        if alone:
            return f"{name} {alone}"
    if _difference(first, (DETERMINISTIC,)):
        together = _difference(first, names, bits=False)
    return f"all at once ({', '.join(names)}) {together}" if together else ""


def _difference(first: FirstCall, names: Collection[str], *, bits: bool = True) -> str:
    """How the result under some settings differs; "" if it does not, or is no further off than is allowed.

    Where PyTorch itself computes the reference op otherwise under the same settings (autocast on CUDA takes 16-bit rows
    of LayerNorm to float32), code made of its operations may too: the error budget holds there, not the bits.

    Args:
        first: the call to compare with.
        names: of the settings.
        bits: whether the bits hold everywhere else.
    """
    try:
        outputs = _under(first, names, first.again)
    except (CannotExpress, NotExecutedError, ReusedOutputError, ViolationError):
        raise
    except Exception as error:
        return f"it raised {type(error).__name__}: {tracebacks.said(error)[:200]}{tracebacks.of_error(error)}"
    words = difference(outputs, first.outputs)
    if not words:
        return ""
    if (not bits or _reference(first, names)) and not first.judged(outputs):
        return ""
    return f"it gives other bits: {words}"


def _reference(first: FirstCall, names: Collection[str]) -> str:
    """How the reference op's own result differs under some settings; "" if it does not."""
    op = reference_op(first.case.op)

    def call(**kwargs: Any) -> Outputs:
        with torch.no_grad():
            return outputs_of(op(**kwargs | ({"inplace": False} if "inplace" in kwargs else {})))

    return difference(_under(first, names, call), _under(first, (), call))


def _under(first: FirstCall, names: Collection[str], call: Callable[..., Outputs]) -> Outputs:
    """The outputs of a call under some settings, of arguments that were made under none but inference mode.

    With bfloat16 as the default dtype their values would be others.
    """
    contexts = _contexts(first)
    with torch.inference_mode() if INFERENCE in names else contextlib.nullcontext():
        kwargs = first.make().kwargs

    def run() -> Outputs:
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(contexts[name]())
            return call(**kwargs)

    if THREAD not in names:
        return run()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()
