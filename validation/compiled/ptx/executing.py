"""Takes the launches that Python code makes on CPU tensors, compiles them for a target, and runs their PTX.

Triton must not interpret: where TRITON_INTERPRET was set when a kernel was decorated, there is nothing to compile.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.errors import NotExecutedError, Violation
from validation.compiled.ptx.launch import Launch, run_launch
from validation.compiled.ptx.machine import Outcome
from validation.compiled.ptx.sass import contracted
from validation.compiled.ptx.target import EXECUTED, compile_for
from validation.device.private import bound_arguments, torch_function_off, triton_module


@dataclasses.dataclass
class Runs:
    """The launches that were run.

    Attributes:
        violations: what the kernels must not have done.
        unordered: as in `validation.compiled.ptx.machine.Outcome`.
        launches: how many there were.
        approximate: whether a result was only known within an interval.
        not_executed: why a launch was not run; "" if all were.
        contracted: what ptxas contracted (`validation.compiled.ptx.sass.contracted`), where races are looked for.
        known: further tensors by name: their elements may be accessed where they lie in a storage of an argument.
    """

    violations: list[Violation] = dataclasses.field(default_factory=list)
    unordered: list[str] = dataclasses.field(default_factory=list)
    launches: int = 0
    approximate: bool = False
    not_executed: str = ""
    contracted: set[str] = dataclasses.field(default_factory=set)
    known: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class How:
    """How launches are run.

    Attributes:
        mode: of `validation.compiled.ptx.approximate.Approximation`: what ``.approx`` gives.
        races: look for races too, which takes 1.5 to 5 times as long (benchmarks/executed_time.py), and at the machine
            code of each kernel.
        backwards: as in `validation.compiled.ptx.machine.run`.
        turn: which configuration of an autotuned kernel is launched: of those that the launch allows this one, counted
            in a circle.
    """

    mode: str = "nearest"
    races: bool = False
    backwards: bool = False
    turn: int = 0


class Kernel:
    """What a launch returns: Triton's compiled kernel, launched again by ``kernel[grid](*arguments)``.

    Libraries keep it to launch without Triton's own look-up (FlagGems' ``libentry``).
    """

    def __init__(self, kernel: Any, launch: Callable[[Any, Mapping[str, Any], Any], None]) -> None:
        self._kernel, self._launch = kernel, launch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """A function that launches it on a grid, with all arguments by position, as Triton's launcher takes them.

        It takes an argument for each parameter, also for a constant, which it does not read (``extractArgs`` in
        Triton 3.7's ``backends/nvidia/driver.c``). Constants that no other parameter follows may be left out.

        Raises:
            TypeError: too few arguments: the launcher would read behind their end.
            NotExecutedError: launches are no longer executed, or for another target, in another way.
        """
        signature: Mapping[str, Any] = self._kernel.src.signature

        def launch(*arguments: Any, stream: Any = None) -> None:
            del stream
            left_out = [type_ for type_ in list(signature.values())[len(arguments) :] if type_ != "constexpr"]
            if left_out:
                raise TypeError(
                    f"{self._kernel.name} was launched again with {len(arguments)} arguments, "
                    f"expected one for each of its {len(signature)} parameters"
                )
            bound = dict.fromkeys(signature) | dict(zip(signature, arguments, strict=False))
            if self._launch is not _launch:
                raise NotExecutedError(f"{self._kernel.name} is launched again after the launches it was compiled for")
            with torch_function_off():
                self._launch(self._kernel, bound, grid)

        return launch


_how = How()
_target: str | None = None
# Runs the launches, if not as `_how` says.
_run: Callable[[Launch], Outcome] | None = None
# Launches a compiled kernel with arguments by name, on a grid.
_launch: Callable[[Any, Mapping[str, Any], Any], None] | None = None
_watching: list[Runs] = []
# Told of each launch before it runs.
begun: list[Callable[[Launch], None]] = []


def always(**changed: Any) -> None:
    """Run launches in another way from now on; the keywords are fields of `How`."""
    global _how
    _how = dataclasses.replace(_how, **changed)


@contextlib.contextmanager
def how(**changed: Any) -> Iterator[None]:
    """Run launches in another way; the keywords are fields of `How`."""
    global _how
    before, _how = _how, dataclasses.replace(_how, **changed)
    try:
        yield
    finally:
        _how = before


def target() -> str | None:
    """The target whose PTX is executed in this process; None if none is."""
    return _target


def current() -> How:
    """How launches are run now."""
    return _how


@contextlib.contextmanager
def watched(known: Mapping[str, Tensor] | None = None) -> Iterator[Runs]:
    """Gather what the launches of this process do, in all of its threads.

    Args:
        known: as in `Runs`.
    """
    runs = Runs(known=known or {})
    _watching.append(runs)
    try:
        yield runs
    finally:
        _watching.remove(runs)


@contextlib.contextmanager
def refusals_noted() -> Iterator[None]:
    """Note for all who watch that a launch is not executed: a candidate may catch the error and call another op."""
    try:
        yield
    except NotExecutedError as error:
        for runs in _watching:
            runs.not_executed = runs.not_executed or str(error)
        raise


def execute(launch: Launch) -> None:
    """Run a launch on the CPU as `how` says, and note what it does for all who watch (`watched`).

    `execute_launches` does so with Triton's launches; others are handed over here. The results are written into the
    launch's tensors.

    Raises:
        NotExecutedError: something in it is not executed; its tensors are as they were.
    """
    run = _run
    for tell in begun:
        tell(launch)
    approximation = Approximation(_how.mode)
    with refusals_noted():
        known = [one for runs in _watching for one in runs.known.items()]
        outcome = (
            run(launch)
            if run is not None
            else run_launch(
                launch, approximation=approximation, races=_how.races, backwards=_how.backwards, known=known
            )
        )
    # nvdisasm takes 0.22 s of processor time for each new kernel.
    changed = contracted(launch.program.kernel, launch.cubin) if run is None and _how.races else ""
    for runs in _watching:
        runs.violations += [dataclasses.replace(one, kernel=launch.name or one.kernel) for one in outcome]
        runs.unordered += outcome.unordered
        runs.launches += 1
        runs.contracted |= {changed} if changed else set()
        runs.approximate |= approximation.used


def execute_launches(
    target: str,
    *,
    options: Mapping[str, Any] | None = None,
    run: Callable[[Launch], Outcome] | None = None,
) -> Callable[[], None]:
    """Run Triton's launches on the CPU from now on, in this process, in which the interpreter must be off.

    Returns:
        A function that ends this.

    Args:
        target: one of `validation.compiled.ptx.target.EXECUTED`.
        options: Triton's compile options that replace the launchers'.
        run: runs each launch; by default as `how` says.

    Raises:
        NotExecutedError: a target without PTX.
    """
    if target not in EXECUTED:
        raise NotExecutedError(f"{target} has no PTX, expected one of {', '.join(EXECUTED)}")
    compile_for(target)
    jit_function = triton_module("triton.runtime.jit").JITFunction
    compile_ = jit_function.run

    def launch_here(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        # A candidate's modes over torch's functions are the wrapper's, not the launch's.
        with torch_function_off():
            keywords |= options or {}
            kernel = compile_(self, *arguments, grid=grid, warmup=True, **keywords)
            if not warmup:
                launch_kernel(kernel, bound_arguments(self, arguments, keywords), grid)
        return Kernel(kernel, launch_kernel)

    def launch_kernel(kernel: Any, bound: Mapping[str, Any], grid: Any) -> None:
        execute(Launch.of(kernel, bound, grid))

    def end() -> None:
        global _target, _run, _launch
        jit_function.run, _target, _run, _launch = compile_, None, before, None

    global _target, _run, _launch
    before = _run
    jit_function.run, _target, _run, _launch = launch_here, target, run, launch_kernel
    return end


@contextlib.contextmanager
def executing(target: str, **options: Any) -> Iterator[Runs]:
    """As `execute_launches`, for a ``with`` block, in which the launches are gathered."""
    end = execute_launches(target, **options)
    try:
        with watched() as runs:
            yield runs
    finally:
        end()
