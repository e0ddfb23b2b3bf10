"""Results of ``validate bench ops``: a row for each workload, compared with its goals, printed and written."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from validation.bench import selection
from validation.bench.picture import share_of_roof
from validation.bench.results import aligned, one_line, write_anew
from validation.bench.timing import CallTime, Timer
from validation.bench.traffic import Traffic, outputs, traffic
from validation.cases.workloads import Workload
from validation.compiled import aot
from validation.compiled.kernel import Compiled, widths_text
from validation.errors import UsageError
from validation.record import Environment

SCHEMA = 1
OURS, COPY, NORM_ALONE = "fused_ops", "copy", "torch norm alone"
ADAPTERS = ("torch_native", "liger", "flaggems")
ARMS = (OURS, "reference_ops", "torch.compile", NORM_ALONE, *ADAPTERS)

HOST_GOAL = 15e-6  # seconds per launch
ROOF_GOAL, HEAD_ROOF_GOAL, HEAD = 0.90, 0.80, 128  # shares of the copy; the greatest width of a head


@dataclasses.dataclass
class Times:
    """One arm's times at one workload."""

    samples: list[CallTime] = dataclasses.field(default_factory=list)

    @property
    def device(self) -> float:
        """Median seconds per call on the device."""
        return statistics.median(sample.device for sample in self.samples)

    @property
    def host(self) -> float:
        """Median seconds per call on the host."""
        return statistics.median(sample.host for sample in self.samples)

    def ratio_to(self, other: "Times") -> tuple[float, float, float]:
        """Median, lowest and highest ratio to another arm's device time in the same round."""
        ratios = [a.device / b.device for a, b in zip(self.samples, other.samples, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


@dataclasses.dataclass
class Row:
    """One workload, timed.

    Attributes:
        workload, shape, dtype: the site, and the shape and dtype of x (or q) there.
        traffic: bytes that must move.
        sets: number of copies of the arguments that were rotated.
        arms: times by arm, `COPY` included.
        left_out: the reason by arm, for arms that were not timed.
        bound: what our op takes at least on this GPU, in seconds, by its counters (`validation.bench.counters`), and by
            what; None if it was not counted.
    """

    workload: Workload
    shape: tuple[int, ...]
    dtype: str
    traffic: Traffic
    sets: int
    arms: dict[str, Times]
    left_out: dict[str, str]
    bound: tuple[float, str] | None = None

    def share(self, name: str) -> float:
        """The copy's time over the arm's."""
        return 1 / self.arms[name].ratio_to(self.arms[COPY])[0]

    @property
    def goal(self) -> float:
        """The goal for the share of the roof."""
        return HEAD_ROOF_GOAL if self.shape[-1] <= HEAD else ROOF_GOAL

    @property
    def failed(self) -> bool:
        """Whether this project's op or its reference was left out for a reason other than lack of memory."""
        reasons = (self.left_out.get(name, "") for name in (OURS, "reference_ops"))
        return any(reason and f"{torch.OutOfMemoryError.__name__}:" not in reason for reason in reasons)

    @property
    def shortfalls(self) -> list[str]:
        """The missed goals, in words."""
        if OURS not in self.arms:
            return [f"not timed: {self.left_out[OURS]}"] if OURS in self.left_out else []
        ours, found = self.arms[OURS], []
        if self.share(OURS) < self.goal:
            found.append(f"{self.share(OURS):.0%} of the copy, aimed at {self.goal:.0%}")
        if ours.host > HOST_GOAL:
            found.append(f"{1e6 * ours.host:.1f} us of host time, aimed at {1e6 * HOST_GOAL:.0f}")
        if self.bound is not None and ours.device < self.bound[0] and self.bound[1] != "latency":
            # Then the counters or a rate behind the bound are wrong; that of latency is an estimate.
            found.append(f"{1e6 * ours.device:.1f} us, below the bound of {1e6 * self.bound[0]:.1f} by {self.bound[1]}")
        for name, timed in self.arms.items():
            less = name == NORM_ALONE and self.workload.op not in ("layer_norm", "rms_norm")
            if name not in (OURS, COPY) and not less and (ratio := ours.ratio_to(timed))[0] > 1:
                found.append(f"{ratio[0]:.2f} x the time of {name} ({ratio[1]:.2f} to {ratio[2]:.2f})")
        return found

    @classmethod
    def from_dict(cls, kept: dict[str, Any], workload: Workload) -> "Row":
        """The row that `to_dict` wrote, with its workload."""
        arms = {
            name: Times([CallTime(*pair) for pair in zip(arm["device_seconds"], arm["host_seconds"], strict=True)])
            for name, arm in kept["arms"].items()
        }
        moved = Traffic(kept["bytes_read"], kept["bytes_written"])
        shape = tuple(kept["shape"])
        bound = kept.get("bound")
        counted = None if bound is None else (bound["seconds"], bound["by"])
        return cls(workload, shape, kept["dtype"], moved, kept["argument_sets"], arms, kept["left_out"], counted)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values; times in seconds."""
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
            **site_of(self.workload, self.shape, self.dtype, self.traffic),
            "argument_sets": self.sets,
            "arms": arms,
            "left_out": self.left_out,
            "shortfalls": self.shortfalls,
            "bound": None if self.bound is None else {"seconds": self.bound[0], "by": self.bound[1]},
        }


def site_of(workload: Workload, shape: tuple[int, ...], dtype: str, moved: Traffic) -> dict[str, Any]:
    """Where a row was measured or counted, as JSON values: the fields of `Row` of the same names."""
    return {
        "model": workload.model,
        "site": workload.site,
        "op": workload.op,
        "shape": list(shape),
        "dtype": dtype,
        "bytes_read": moved.read,
        "bytes_written": moved.written,
    }


def about(timer: Timer, device: str) -> dict[str, Any]:
    """Where and how the rows are measured, for `write`."""
    return {
        "environment": dataclasses.asdict(Environment.capture(device=device, seed=0, profile="")),
        "measures": timer.measures,
        "cache_bytes": timer.cache_bytes,
    }


def write(rows: Sequence[Row], where: dict[str, Any], folder: Path, stamp: str) -> list[Path]:
    """Write ``ops-<stamp>.json`` and its picture ``.svg``, replacing old ones; returns both paths.

    Raises:
        UsageError: the folder cannot be written.
    """
    data = {
        "schema": SCHEMA,
        **where,
        "goals": {"share_of_copy": ROOF_GOAL, "share_of_copy_of_heads": HEAD_ROOF_GOAL, "host_seconds": HOST_GOAL},
        "ops_without_workload": selection.without_workload(),
        "rows": [row.to_dict() for row in rows],
    }
    title = f"Share of the copy bandwidth: {where['environment']['device']}, {stamp}"
    picture = share_of_roof([bar(row) for row in rows], OURS, title)
    texts = {f"ops-{stamp}.json": json.dumps(data, indent=1) + "\n", f"ops-{stamp}.svg": str(picture)}
    return write_anew(folder, texts)


def read(paths: Sequence[Path]) -> tuple[list[Row], dict[str, Any]]:
    """Read the last row of each workload that `write` wrote, in the order of `chosen`; and where they were measured.

    Raises:
        UsageError: a file is missing, the files are of different devices, or a workload no longer exists.
    """
    found = selection.chosen()
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
    """A row's values in the picture: op, site, share of the roof by arm, and the goal."""
    shares = {name: row.share(name) for name in row.arms if name != COPY}
    return row.workload.op, f"{row.workload.name} {list(row.shape)}", shares, row.goal


def table(rows: Sequence[Row]) -> str:
    """The rows as text: one for each workload, then missed goals and arms left out."""
    others = [name for name in ARMS[1:] if any(name in row.arms for row in rows)]
    lines: list[str] = []
    left_out: dict[str, None] = {}
    header = ("workload", "MB", "us", "GB/s", "copy %", "host us", "x bound", *others)
    for op in dict.fromkeys(row.workload.op for row in rows):
        cells = [header]
        for row in (row for row in rows if row.workload.op == op):
            left_out |= {f"{name}: {why}": None for name, why in row.left_out.items()}
            ours = row.arms.get(OURS)
            numbers = [f"{row.traffic.total / 1e6:.1f}", *("-" for _ in range(5 + len(others)))]
            if ours is not None:
                numbers[1:5] = (
                    f"{1e6 * ours.device:.1f}",
                    f"{row.traffic.total / ours.device / 1e9:.0f}",
                    f"{100 * row.share(OURS):.0f}",
                    f"{1e6 * ours.host:.1f}",
                )
                if row.bound is not None:
                    numbers[5] = f"{ours.device / row.bound[0]:.2f} {row.bound[1]}"
                for n, name in enumerate(others):
                    if name in row.arms:
                        numbers[6 + n] = f"{row.arms[name].ratio_to(ours)[0]:.2f}x"
            cells.append((row.workload.name, *numbers))
        lines += ["", op, *aligned(cells)]
    lines += [
        "",
        "MB: bytes that must move. copy %: time of a copy of as many bytes over the op's. x bound: the op's time",
        "over the least that its counters imply, and by what. Then the time of others over the op's: above 1 the fused",
        "op is faster. Norm alone does less than the op.",
    ]
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
            moved, x = traffic(case), outputs(case.op, case.tensors)[0]
            sizes = (f"{count / 1e6:.2f}" for count in (moved.read, moved.written, moved.total))
            cells.append((workload.name, "x".join(map(str, x.shape)), x.dtype, *sizes))
        lines += ["", op, *aligned(cells)]
    return "\n".join(lines[1:])


def kernel_table(found: Sequence[Workload], kernels: Sequence[Compiled]) -> str:
    """The compiled kernel of each workload, as text."""
    lines = []
    for op in dict.fromkeys(workload.op for workload in found):
        cells: list[Sequence[str]] = [("workload", "loads", "stores", "registers", "local B", "shared B", "warps")]
        for workload, kernel in zip(found, kernels, strict=True):
            if workload.op == op:
                accesses = (widths_text(bits) for bits in (kernel.load_bits, kernel.store_bits))
                sizes = (kernel.registers, kernel.local_bytes, kernel.shared_bytes, kernel.warps)
                cells.append((workload.name, *accesses, *map(str, sizes)))
        lines += ["", op, *aligned(cells)]
    return "\n".join(lines[1:])


def without_gpu(found: Sequence[Workload], target: str = "sm_90") -> str:
    """What is known without a GPU, as text: the byte model and the compiled kernels."""
    ops = {workload.op for workload in found}
    alone = [op for op in selection.without_workload() if op in ops]
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
            "Nothing is timed: timings need a GPU (validate bench ops --gpu).",
        ]
    )
