"""``validate bench ops``: every op at every workload of the real models, beside everything else that computes it.

Ops and widths that no model has here are timed at shapes of their own (`validation.bench.shapes`).

Arms of one workload are timed in turn, there and back, in every round, on arguments that rotate past the cache, from
one arm's call to the next arm's too; results are kept as long, so that outputs rotate as well. ``copy`` is one of the
arms: a device-to-device copy that moves exactly as many bytes as the op must (`traffic`). An op's share of the roof
is the copy's time over its own.
"""

import dataclasses
import itertools
import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import reference_ops
from validation.bench.picture import share_of_roof
from validation.bench.shapes import GROUP, shapes
from validation.bench.timing import Sample, Timer
from validation.bench.traffic import Traffic, argument_sets, compact, traffic
from validation.cases.workloads import Workload, workloads
from validation.device import aot
from validation.errors import CannotExpress, UsageError
from validation.ops import check_op_name, load_op_set
from validation.record import Environment

SCHEMA = 1
MODELS = ("helios", "hunyuan3d", GROUP)
OURS, COPY, NORM_ALONE = "fused_ops", "copy", "torch norm alone"
ADAPTERS = ("torch_native", "liger", "flaggems")
ARMS = (OURS, "reference_ops", "torch.compile", NORM_ALONE, *ADAPTERS)

HOST_GOAL = 15e-6  # seconds a launch
ROOF_GOAL, HEAD_ROOF_GOAL, HEAD = 0.90, 0.80, 128  # share of the copy; heads are at most so wide


def chosen(names: Sequence[str] = (), models: Sequence[str] = ()) -> list[Workload]:
    """The workloads of these ops and models, or of all, a model's each with its compact form.

    Raises:
        UsageError: an unknown op or model, or an op that has no workload there.
    """
    for name in names:
        check_op_name(name)
    for model in models:
        if model not in MODELS:
            raise UsageError(f"--model: unknown model {model!r}, expected one of: {', '.join(MODELS)}")
    found = []
    for name in names or reference_ops.OP_NAMES:
        of_models = (each for workload in workloads(name) for each in (workload, compact(workload)))
        own = [each for each in (*of_models, *shapes(name)) if each and (not models or each.model in models)]
        if names and not own:
            raise UsageError(f"--op: {name} is at no site of {' or '.join(models)}, expected an op that is")
        found += own
    return found


def chosen_arms(names: Sequence[str] = ()) -> tuple[str, ...]:
    """Ours and these arms, or all.

    Raises:
        UsageError: an unknown arm.
    """
    for name in names:
        if name not in ARMS:
            raise UsageError(f"--arm: unknown arm {name!r}, expected some of: {', '.join(ARMS)}")
    return tuple(dict.fromkeys((OURS, *names))) if names else ARMS


def norm_alone(
    x: Tensor | None = None, q: Tensor | None = None, k: Tensor | None = None, *, rms: bool, eps: float
) -> list[Tensor]:
    """PyTorch's fused norm of x, or of q and of k, without weight and modulation: less than the op does."""
    activations = [t for t in (x, q, k) if t is not None]
    if rms:
        return [functional.rms_norm(t, t.shape[-1:], eps=eps) for t in activations]
    return [functional.layer_norm(t, t.shape[-1:], eps=eps) for t in activations]


def arm(name: str, op: str) -> Callable[..., Any]:
    """What computes an op there, called with keyword arguments.

    Raises:
        CannotExpress, UsageError: the library has no such op, or is not installed.
    """
    reference: Callable[..., Any] = getattr(reference_ops, op)
    if name == OURS:
        import fused_ops

        ours: Callable[..., Any] = getattr(fused_ops, op)
        return ours
    if name == "reference_ops":
        return reference
    if name == "torch.compile":
        torch._dynamo.reset()
        compiled: Callable[..., Any] = torch.compile(reference, fullgraph=True, dynamic=False)
        return compiled
    if name == NORM_ALONE:
        if "norm" not in op:
            raise CannotExpress("there is no norm in it")
        rms = "layer" not in op

        def call(*, eps: float, x: Any = None, q: Any = None, k: Any = None, **_: Any) -> list[Tensor]:
            return norm_alone(x, q, k, rms=rms, eps=eps)

        return call
    found = load_op_set(f"validation.adapters.{name}")
    if op not in found:
        raise CannotExpress("the library has no such op")
    return found[op]


@dataclasses.dataclass
class Timed:
    """One arm's times at one workload."""

    samples: list[Sample] = dataclasses.field(default_factory=list)

    @property
    def device(self) -> float:
        """Median seconds a call on the device."""
        return statistics.median(sample.device for sample in self.samples)

    @property
    def host(self) -> float:
        """Median seconds a call on the host."""
        return statistics.median(sample.host for sample in self.samples)

    def ratio_to(self, other: "Timed") -> tuple[float, float, float]:
        """Median, lowest and highest ratio to another arm's device time in the same round."""
        ratios = [a.device / b.device for a, b in zip(self.samples, other.samples, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


@dataclasses.dataclass
class Row:
    """One workload, timed.

    Attributes:
        workload, shape, dtype: the site, and x (or q) there.
        traffic: bytes that must move.
        sets: copies of the arguments that were rotated.
        arms: times by arm, `COPY` among them.
        left_out: why, by arm.
    """

    workload: Workload
    shape: tuple[int, ...]
    dtype: str
    traffic: Traffic
    sets: int
    arms: dict[str, Timed]
    left_out: dict[str, str]

    def share(self, name: str) -> float:
        """The copy's time over the arm's."""
        return 1 / self.arms[name].ratio_to(self.arms[COPY])[0]

    @property
    def goal(self) -> float:
        """The share of the roof that is aimed at."""
        return HEAD_ROOF_GOAL if self.shape[-1] <= HEAD else ROOF_GOAL

    @property
    def failed(self) -> bool:
        """Whether an op of this project was left out for another reason than a lack of memory."""
        reasons = (self.left_out.get(name, "") for name in (OURS, "reference_ops"))
        return any(reason and f"{torch.OutOfMemoryError.__name__}:" not in reason for reason in reasons)

    @property
    def shortfalls(self) -> list[str]:
        """What falls short of the goals, in words."""
        if OURS not in self.arms:
            return [f"not timed: {self.left_out[OURS]}"] if OURS in self.left_out else []
        ours, found = self.arms[OURS], []
        if self.share(OURS) < self.goal:
            found.append(f"{self.share(OURS):.0%} of the copy, aimed at {self.goal:.0%}")
        if ours.host > HOST_GOAL:
            found.append(f"{1e6 * ours.host:.1f} us of host time, aimed at {1e6 * HOST_GOAL:.0f}")
        for name, timed in self.arms.items():
            less = name == NORM_ALONE and self.workload.op not in ("layer_norm", "rms_norm")
            if name not in (OURS, COPY) and not less and (ratio := ours.ratio_to(timed))[0] > 1:
                found.append(f"{ratio[0]:.2f} x the time of {name} ({ratio[1]:.2f} to {ratio[2]:.2f})")
        return found

    @classmethod
    def from_dict(cls, kept: dict[str, Any], workload: Workload) -> "Row":
        """What `to_dict` made, at its workload."""
        arms = {
            name: Timed([Sample(*pair) for pair in zip(arm["device_seconds"], arm["host_seconds"], strict=True)])
            for name, arm in kept["arms"].items()
        }
        moved = Traffic(kept["bytes_read"], kept["bytes_written"])
        shape = tuple(kept["shape"])
        return cls(workload, shape, kept["dtype"], moved, kept["argument_sets"], arms, kept["left_out"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; seconds."""
        arms = {}
        for name, timed in self.arms.items():
            arms[name] = {
                "device_seconds": [sample.device for sample in timed.samples],
                "host_seconds": [sample.host for sample in timed.samples],
                "median_device_seconds": timed.device,
                "median_host_seconds": timed.host,
                "bytes_per_second": self.traffic.total / timed.device,
                "share_of_copy": self.share(name),
            }
            if OURS in self.arms:
                arms[name]["ratio_to_fused"] = list(timed.ratio_to(self.arms[OURS]))
        return {
            "model": self.workload.model,
            "site": self.workload.site,
            "op": self.workload.op,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "bytes_read": self.traffic.read,
            "bytes_written": self.traffic.written,
            "argument_sets": self.sets,
            "arms": arms,
            "left_out": self.left_out,
            "shortfalls": self.shortfalls,
        }


def time_workload(
    workload: Workload, timer: Timer, *, whole: bool, names: Sequence[str] = ARMS, rounds: int, calls: int
) -> Row:
    """Time every arm at a workload.

    Args:
        workload: the site.
        timer: how, and on which device.
        whole: at full size; else with a few tokens.
        names: arms, of `ARMS`; a copy is always timed too.
        rounds: samples of each arm, all arms in turn in each.
        calls: of a sample.

    Raises:
        Exception: whatever making the arguments raises, but for a lack of memory, and the copy at any time. An arm's
            errors are written down, and it is left out.
    """
    case = workload.make(whole)
    moved = traffic(case)
    # Between two uses of a set, twice what the cache holds has gone by.
    count = max(2, 1 + math.ceil(2 * timer.cache_bytes / moved.total))
    x = case.tensors["x" if "x" in case.tensors else "q"]
    row = Row(workload, x.shape, x.dtype, moved, count, {}, {})
    try:
        sets = argument_sets(case, timer.device, count)
        copy = _copy(moved.total, timer.device, count)
    except torch.OutOfMemoryError as error:
        row.left_out = dict.fromkeys(names, f"its arguments: {one_line(error)}")
        return row
    arms, row.left_out = _prepared(workload.op, names, sets, timer, calls)
    arms[COPY] = copy
    row.arms = {name: Timed() for name in arms}
    for n in range(rounds):
        for name in list(arms)[:: 1 if n % 2 else -1]:
            if name not in row.arms:
                continue
            try:
                row.arms[name].samples.append(timer.sample(arms[name], calls))
            except Exception as error:  # such as of memory, or of a run that took too long to queue
                if name == COPY:
                    raise
                row.left_out[name] = one_line(error)
                del row.arms[name]
    return row


def _prepared(
    op: str, names: Sequence[str], sets: list[dict[str, Any]], timer: Timer, calls: int
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The arms that run, warm, and why others do not."""
    arms: dict[str, Callable[[], object]] = {}
    left_out = {}
    rotation = itertools.cycle(sets)  # of all arms: where one stopped the next goes on
    for name in names:
        try:
            call = _rotating(arm(name, op), rotation, len(sets))
            for _ in range(2 * len(sets)):
                call()
            timer.sample(call, calls)
            arms[name] = call
        except Exception as error:  # whatever it is, the other arms and workloads are measured
            left_out[name] = one_line(error)
    return arms, left_out


def one_line(error: BaseException) -> str:
    """An error's class and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"


def _rotating(function: Callable[..., Any], sets: Iterator[dict[str, Any]], count: int) -> Callable[[], object]:
    # Held until their memory has gone cold: else the allocator would give out one block again and again.
    results: deque[Any] = deque(maxlen=count)

    def call() -> None:
        results.append(function(**next(sets)))

    return call


def _copy(total: int, device: str, count: int) -> Callable[[], object]:
    half = max(total // 16, 1)  # of int64, read and written
    pairs = itertools.cycle([random_pair(half, device) for _ in range(count)])

    def call() -> None:
        source, target = next(pairs)
        target.copy_(source)

    return call


def random_pair(numbers: int, device: str) -> tuple[Tensor, Tensor]:
    """Random int64 to copy between: zeros may move faster than what an op reads."""
    generator = torch.Generator(device).manual_seed(0)
    source, target = torch.empty(2, numbers, dtype=torch.int64, device=device).random_(generator=generator)
    return source, target


def run(
    found: Sequence[Workload],
    timer: Timer,
    *,
    whole: bool,
    names: Sequence[str] = ARMS,
    rounds: int = 9,
    calls: int = 20,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Row]:
    """Time workloads, one after the other; the arguments are those of `time_workload`."""
    for n, workload in enumerate(found):
        progress(f"{n + 1} of {len(found)}: {workload.op}, {workload.name}")
        yield time_workload(workload, timer, whole=whole, names=names, rounds=rounds, calls=calls)
        if timer.device == "cuda":
            torch.cuda.empty_cache()


def about(timer: Timer, device: str) -> dict[str, Any]:
    """Where and how is measured, as `write` takes it."""
    return {
        "environment": dataclasses.asdict(Environment.capture(device=device, seed=0, profile="")),
        "measures": timer.measures,
        "cache_bytes": timer.cache_bytes,
    }


def write(rows: Sequence[Row], where: dict[str, Any], folder: Path, stamp: str) -> tuple[Path, Path]:
    """Write ``ops-<stamp>.json`` and the picture beside it, ``.svg``, anew; returns both paths.

    Raises:
        UsageError: the folder cannot be written.
    """
    data = {
        "schema": SCHEMA,
        **where,
        "goals": {"share_of_copy": ROOF_GOAL, "share_of_copy_of_heads": HEAD_ROOF_GOAL, "host_seconds": HOST_GOAL},
        "ops_without_workload": without_workload(),
        "rows": [row.to_dict() for row in rows],
    }
    paths = folder / f"ops-{stamp}.json", folder / f"ops-{stamp}.svg"
    texts = (
        json.dumps(data, indent=1) + "\n",
        str(share_of_roof([bar(row) for row in rows], OURS, f"{where['environment']['device']}, {stamp}")),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}, expected a writable folder") from error
    return paths


def read(paths: Sequence[Path]) -> tuple[list[Row], dict[str, Any]]:
    """The rows that `write` wrote, a workload's last one, in the order of `chosen`; and where they were measured.

    Raises:
        UsageError: no such files, they are of different devices, or hold what is no workload any more.
    """
    found = chosen()
    known = {(each.model, each.site, each.op): n for n, each in enumerate(found)}
    rows: dict[int, Row] = {}
    where: dict[str, Any] = {}
    for path in paths:
        try:
            data = json.loads(path.read_text())
            where = where or {name: data[name] for name in ("environment", "measures", "cache_bytes")}
            for kept in data["rows"]:
                n = known[kept["model"], kept["site"], kept["op"]]
                rows[n] = Row.from_dict(kept, found[n])
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"--merge: {path}: {one_line(error)}, expected results of this version") from error
        if data["environment"]["device"] != where["environment"]["device"]:
            raise UsageError(f"--merge: {path} was measured on another device, expected results of one")
    return [rows[n] for n in sorted(rows)], where


def bar(row: Row) -> tuple[str, str, dict[str, float], float]:
    """What the picture shows of a row: op, site, share of the roof by arm, and the goal."""
    shares = {name: row.share(name) for name in row.arms if name != COPY}
    return row.workload.op, f"{row.workload.name} {list(row.shape)}", shares, row.goal


def without_workload() -> list[str]:
    """Ops that stand at no site of the models."""
    return [op for op in reference_ops.OP_NAMES if not workloads(op)]


def table(rows: Sequence[Row]) -> str:
    """The rows as text: one a workload, then what falls short and what was left out."""
    others = [name for name in ARMS[1:] if any(name in row.arms for row in rows)]
    lines: list[str] = []
    left_out: dict[str, None] = {}
    header = ("workload", "MB", "us", "GB/s", "copy %", "host us", *others)
    for op in dict.fromkeys(row.workload.op for row in rows):
        cells = [header]
        for row in (row for row in rows if row.workload.op == op):
            left_out |= {f"{name}: {why}": None for name, why in row.left_out.items()}
            ours = row.arms.get(OURS)
            numbers = [f"{row.traffic.total / 1e6:.1f}", *("-" for _ in range(4 + len(others)))]
            if ours is not None:
                numbers[1:5] = (
                    f"{1e6 * ours.device:.1f}",
                    f"{row.traffic.total / ours.device / 1e9:.0f}",
                    f"{100 * row.share(OURS):.0f}",
                    f"{1e6 * ours.host:.1f}",
                )
                for n, name in enumerate(others):
                    if name in row.arms:
                        numbers[5 + n] = f"{row.arms[name].ratio_to(ours)[0]:.2f}x"
            cells.append((row.workload.name, *numbers))
        lines += ["", op, *aligned(cells)]
    lines += ["", "MB: bytes that must move. copy %: time of a copy of as many bytes over the op's. Then the time of"]
    lines += ["others over the op's: above 1 the fused op is faster. Norm alone does less than the op."]
    if left_out:
        lines += ["", "left out:", *(f"  {why}" for why in left_out)]
    short = [row for row in rows if row.shortfalls]
    lines += ["", f"Short of the goals at {len(short)} of {len(rows)} workloads:" if short else "Every goal is met."]
    lines += [f"  {row.workload.op}, {row.workload.name}: {what}" for row in short for what in row.shortfalls]
    return "\n".join(lines)


def byte_table(found: Sequence[Workload]) -> str:
    """The byte model of workloads at full size, as text."""
    lines = []
    for op in dict.fromkeys(workload.op for workload in found):
        cells: list[Sequence[str]] = [("workload", "shape", "dtype", "read MB", "written MB", "total MB")]
        for workload in (workload for workload in found if workload.op == op):
            case = workload.make(True)
            moved, x = traffic(case), case.tensors["x" if "x" in case.tensors else "q"]
            sizes = (f"{count / 1e6:.2f}" for count in (moved.read, moved.written, moved.total))
            cells.append((workload.name, "x".join(map(str, x.shape)), x.dtype, *sizes))
        lines += ["", op, *aligned(cells)]
    return "\n".join(lines[1:])


def kernel_table(found: Sequence[Workload], kernels: Sequence[aot.Compiled]) -> str:
    """What the compiler made of the kernel of each workload, as text."""
    lines = []
    for op in dict.fromkeys(workload.op for workload in found):
        cells: list[Sequence[str]] = [("workload", "loads", "stores", "registers", "local B", "shared B", "warps")]
        for workload, kernel in zip(found, kernels, strict=True):
            if workload.op == op:
                accesses = (aot.widths_text(bits) for bits in (kernel.load_bits, kernel.store_bits))
                sizes = (kernel.registers, kernel.local_bytes, kernel.shared_bytes, kernel.warps)
                cells.append((workload.name, *accesses, *map(str, sizes)))
        lines += ["", op, *aligned(cells)]
    return "\n".join(lines[1:])


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells in columns, the first to the left."""
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(size) if n else cell.ljust(size) for n, (cell, size) in enumerate(zip(row, sizes, strict=True))
        )
        for row in cells
    ]


def without_gpu(found: Sequence[Workload], target: str = "sm_90") -> str:
    """What can be known without a GPU: the byte model, and what the compiler made of the kernels."""
    ops = {workload.op for workload in found}
    alone = [op for op in without_workload() if op in ops]
    return "\n".join(
        [
            "Bytes that must move: each input once, each output once.",
            "",
            byte_table(found),
            "",
            f"Compiled ahead of time for {target}:",
            "",
            kernel_table(found, aot.compile_cases(target, [workload.make(True) for workload in found])),
            "",
            *([f"At no site of a model, so at shapes of their own alone: {', '.join(alone)}."] if alone else []),
            "Nothing was timed: timings need a GPU (validate bench ops --gpu).",
        ]
    )
