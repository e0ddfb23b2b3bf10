"""``validate bench ops`` without a GPU: what every arm asks of a GPU at every workload, counted, and what that implies.

The kernels are compiled for each GPU's target, and some CTAs of each launch are executed
(`validation.compiled.counters`). PyTorch's own kernels, of eager arms or beside a library's kernel, are not compiled by
Triton: each counts as the bytes of its inputs and outputs (`validation.bench.forward_bytes`).
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from validation.bench.ops_results import ADAPTERS, OURS, site_of
from validation.bench.ops_results import ARMS as TIMED
from validation.bench.picture import share_of_roof
from validation.bench.results import aligned, one_line, write_anew
from validation.bench.traffic import Traffic, outputs, traffic
from validation.cases.workloads import Workload
from validation.compiled.counters.gpus import GPUS, Gpu
from validation.compiled.counters.launch import Counters
from validation.errors import UsageError
from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.record import Environment

SCHEMA = 1
EAGER = ("reference_ops", "torch_native")
ARMS = (OURS, "reference_ops", *ADAPTERS)
TARGETS = tuple(dict.fromkeys(one.target for one in GPUS))
# A table names one GPU's bound in full.
SHOWN = next(gpu for gpu in GPUS if gpu.name == "H200")
# Of these more is worse.
WORSE = ("sectors", "read_bytes", "written_bytes", "wavefronts", "machine_instructions", "registers", "local_bytes")
OF_ANY_COMPILER = ("read_bytes", "written_bytes")


@dataclasses.dataclass(frozen=True)
class Counted:
    """An arm's call at a workload.

    Attributes:
        launches: of Triton kernels, by target, in order.
        torch_bytes: that PyTorch's own kernels read and write.
        torch_kernels: how many of them, by operator.
    """

    launches: Mapping[str, tuple[Counters, ...]]
    torch_bytes: int
    torch_kernels: Mapping[str, int]

    def seconds(self, gpu: Gpu) -> float:
        """The least time on a GPU: of each launch its bound, of PyTorch's kernels that of DRAM."""
        return sum(one.bound(gpu)[1] for one in self.launches[gpu.target]) + self.torch_bytes / gpu.dram

    def named(self, gpu: Gpu) -> str:
        """What most of the least time is spent on."""
        parts = [one.bound(gpu) for one in self.launches[gpu.target]]
        if self.torch_bytes:
            parts.append(("DRAM", self.torch_bytes / gpu.dram))
        return max(parts, key=lambda part: part[1])[0] if parts else "-"

    def dram_bytes(self, target: str) -> int:
        """Bytes of DRAM, of all kernels."""
        return self.torch_bytes + sum(one.dram_bytes for one in self.launches[target])


@dataclasses.dataclass
class Row:
    """A workload, counted.

    Attributes:
        workload, shape, dtype: the site, and the shape and dtype of x (or q) there.
        traffic: bytes that must move.
        elements: of the outputs.
        arms: by name. left_out: the reason by arm.
    """

    workload: Workload
    shape: tuple[int, ...]
    dtype: str
    traffic: Traffic
    elements: int
    arms: dict[str, Counted] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def share(self, arm: str, gpu: Gpu) -> float:
        """The time in which the bytes that must move take the DRAM, over the arm's least time."""
        return self.traffic.total / gpu.dram / self.arms[arm].seconds(gpu)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; bounds in seconds."""
        arms = {
            name: {
                "launches": {target: [one.to_dict() for one in made] for target, made in arm.launches.items()},
                "torch_bytes": arm.torch_bytes,
                "torch_kernels": arm.torch_kernels,
                "bounds": {
                    gpu.name: {
                        "seconds": arm.seconds(gpu),
                        "by": arm.named(gpu),
                        "share_of_dram": self.share(name, gpu),
                        "launches": [one.bounds(gpu) for one in arm.launches[gpu.target]],
                    }
                    for gpu in GPUS
                    if gpu.target in arm.launches
                },
            }
            for name, arm in self.arms.items()
        }
        return {
            **site_of(self.workload, self.shape, self.dtype, self.traffic),
            "arms": arms,
            "left_out": self.left_out,
        }


def chosen_arms(names: Sequence[str] = ()) -> tuple[str, ...]:
    """Our arm and the named ones, or all that can be counted.

    Raises:
        UsageError: an arm that is not known, or that can only be timed.
    """
    for name in names:
        if name not in ARMS:
            what = f"{name!r} cannot be counted without a GPU" if name in TIMED else f"unknown arm {name!r}"
            raise UsageError(f"--arm: {what}, expected some of: {', '.join(ARMS)}")
    return tuple(dict.fromkeys((OURS, *names))) if names else ARMS


def count(
    found: Sequence[Workload],
    *,
    names: Sequence[str] = ARMS,
    targets: Sequence[str] = TARGETS,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Row]:
    """Count arms at workloads at full size, each target in a process of its own.

    Args:
        found: the workloads.
        names: some of `ARMS`.
        targets: of the GPUs.
        progress: is told of each target.

    Raises:
        RuntimeError: a process died.
    """
    rows = []
    for workload in found:
        case = workload.make(True)
        firsts = outputs(case.op, case.tensors)
        elements = sum(spec.numel for spec in firsts)
        rows.append(Row(workload, firsts[0].shape, firsts[0].dtype, traffic(case), elements))
    cases = [workload.make(True).to_json() for workload in found]
    lines: list[dict[str, Any]] = []
    for n, target in enumerate(targets):
        progress(f"{target}: {len(found)} workloads, {len(names)} arms")
        # What PyTorch does is the same for every target.
        arms = {name: _module(name) for name in names if not n or name not in EAGER}
        request = {"target": target, "arms": arms, "eager": EAGER, "cases": cases}
        order = Order("validation.bench.counting", "main", (), str(Path.cwd()), {})
        call = start_call(order, json.dumps(request), without=("TRITON_INTERPRET",))
        try:
            lines += [json.loads(line) for line in call.output().splitlines()]
        except KeyboardInterrupt:
            call.end()
            raise
    for n, row in enumerate(rows):
        for name in names:
            _add(row, name, [line for line in lines if (line["case"], line["arm"]) == (n, name)], targets)
    return rows


def _module(arm: str) -> str:
    return f"validation.adapters.{arm}" if arm in ADAPTERS else arm


def _add(row: Row, name: str, lines: Sequence[dict[str, Any]], targets: Sequence[str]) -> None:
    reasons = [line["left_out"] for line in lines if "left_out" in line]
    if reasons:
        row.left_out[name] = reasons[0]
        return
    launches = {line["target"]: tuple(Counters(**one) for one in line["launches"]) for line in lines}
    row.arms[name] = Counted(
        {target: launches.get(target, ()) for target in targets},
        lines[0]["torch_bytes"],
        lines[0]["torch_kernels"],
    )


def gpu_of(device: str) -> Gpu | None:
    """The GPU of a device's name; None for one whose rates are not known, such as NVIDIA H100 NVL."""
    words = device.replace("-", " ").split()
    return next((gpu for gpu in GPUS if gpu.name in words and not {"NVL", "PCIe"} & {*words}), None)


def bounds_on(device: str, found: Sequence[Workload]) -> list[tuple[float, str] | None]:
    """What our op takes at least at each workload on a GPU of this name, in seconds, and by what; None if unknown."""
    gpu = gpu_of(device)
    if gpu is None:
        return [None] * len(found)
    rows = count(found, names=[OURS], targets=[gpu.target])
    return [(row.arms[OURS].seconds(gpu), row.arms[OURS].named(gpu)) if OURS in row.arms else None for row in rows]


def write(rows: Sequence[Row], folder: Path, name: str) -> list[Path]:
    """Write ``<name>.json`` and its picture ``.svg``, replacing old ones; returns both paths.

    Raises:
        UsageError: the folder cannot be written.
    """
    environment = dataclasses.asdict(Environment.capture(device="none: counted", seed=0, profile=""))
    data = {
        "schema": SCHEMA,
        "environment": environment,
        "gpus": [dataclasses.asdict(gpu) for gpu in GPUS],
        "rows": [row.to_dict() for row in rows],
    }
    return write_anew(folder, {f"{name}.json": json.dumps(data, indent=1) + "\n", f"{name}.svg": picture(rows)})


def picture(rows: Sequence[Row]) -> str:
    """Ops and widths, ours beside others, as SVG."""
    bars = [
        (
            row.workload.op,
            f"{row.workload.name} {list(row.shape)}",
            {name: row.share(name, SHOWN) for name in row.arms},
            None,
        )
        for row in rows
    ]
    title = f"At best this share of the DRAM bandwidth of an {SHOWN.name}: a bound from counters, not measured"
    return str(share_of_roof(bars, OURS, title))


def table(rows: Sequence[Row]) -> str:
    """The rows as text: one for each workload and arm."""
    others = [gpu for gpu in GPUS if gpu is not SHOWN]
    counts = ("kernels", "DRAM x", "L1 x", "banks x", "instr", "regs", "local B", "CTAs/SM")
    shares = (f"{gpu.name} %" for gpu in (SHOWN, *others))
    header = ("workload", "arm", *counts, f"{SHOWN.name} bound us", "by", *shares)
    lines: list[str] = []
    left_out: dict[str, None] = {}
    for op in dict.fromkeys(row.workload.op for row in rows):
        cells: list[Sequence[str]] = [header]
        for row in (row for row in rows if row.workload.op == op):
            left_out |= {f"{name}: {why}": None for name, why in row.left_out.items()}
            for name, arm in row.arms.items():
                first = row.workload.name if name == next(iter(row.arms)) else ""
                cells.append((first, name, *_cells(row, name, arm, [SHOWN, *others])))
        lines += ["", op, *aligned(cells)]
    launches = [one for row in rows for arm in row.arms.values() for made in arm.launches.values() for one in made]
    lines += ["", *NOTES, *sorted({one.contracted for one in launches} - {""})]
    unlike = sorted({one.kernel for one in launches if not one.alike})
    if unlike:
        lines += [f"CTAs that differ, of which some stand for all, so that counts are estimates: {', '.join(unlike)}"]
    if left_out:
        lines += ["", "left out:", *(f"  {why}" for why in left_out)]
    return "\n".join(lines[1:])


NOTES = (
    "Counted, not timed; nothing of it was compared with hardware. DRAM x: bytes over those that must move. L1 x:",
    "sectors of 32 bytes that warps request over the fewest that hold what they ask for. banks x: cycles of shared",
    "memory over the fewest. instr: machine instructions of a warp for 32 elements of the result. CTAs/SM: that fit at",
    "once. Then the bound, by what it is, and for each GPU how much of its DRAM bandwidth that leaves at best: of what",
    "must come from DRAM; what is small may still lie in L2. A bound by latency is an estimate, good to 50 %. Kernels",
    "of PyTorch (in brackets) count by their bytes alone.",
)


def _cells(row: Row, name: str, arm: Counted, gpus: Sequence[Gpu]) -> list[str]:
    made = arm.launches[SHOWN.target]
    torch_kernels = sum(arm.torch_kernels.values())
    kernels = " ".join([*([str(len(made))] if made else []), *([f"[{torch_kernels}]"] if torch_kernels else [])])
    found = [kernels, f"{arm.dram_bytes(SHOWN.target) / row.traffic.total:.2f}"]
    if made:
        wavefronts, fewest = (sum(getattr(one, n) for one in made) for n in ("wavefronts", "needed_wavefronts"))
        longest = max(made, key=lambda one: one.bound(SHOWN)[1])
        found += [
            f"{sum(one.sectors for one in made) / max(1, sum(one.needed for one in made)):.2f}",
            f"{wavefronts / fewest:.2f}" if fewest else "-",
            f"{32 * sum(one.machine_instructions for one in made) / row.elements:.1f}",
            str(max(one.registers for one in made)),
            str(max(one.local_bytes for one in made)),
            str(longest.ctas_of_sm(SHOWN)),
        ]
    else:
        found += ["-"] * 6
    found += [f"{1e6 * arm.seconds(SHOWN):.1f}", arm.named(SHOWN)]
    return [*found, *(f"{100 * row.share(name, gpu):.0f}" for gpu in gpus)]


def kept(rows: Iterable[Row]) -> str:
    """The counters of ours that `regressions` compares, as JSON, a workload a line."""
    lines = [
        json.dumps(
            {
                "op": row.workload.op,
                "model": row.workload.model,
                "site": row.workload.site,
                "launches": {
                    target: [{name: getattr(one, name) for name in WORSE} for one in made]
                    for target, made in row.arms[OURS].launches.items()
                },
            }
        )
        for row in rows
    ]
    return f'{{"schema": {SCHEMA}, "triton": "{version("triton")}", "rows": [\n' + ",\n".join(lines) + "\n]}\n"


def regressions(rows: Iterable[Row], before: str, names: Sequence[str] = WORSE) -> list[str]:
    """Where a counter of ours is worse than one that `kept` wrote, in words; empty if nowhere.

    Args:
        rows: counted now.
        before: what `kept` wrote.
        names: the counters that are compared, and the number of launches.

    Raises:
        UsageError: what was kept has another form, or lacks a row.
    """
    try:
        known = {(row["model"], row["site"], row["op"]): row["launches"] for row in json.loads(before)["rows"]}
        found = []
        for row in rows:
            workload = row.workload
            of_row = known[workload.model, workload.site, workload.op]
            for target, made in row.arms[OURS].launches.items():
                where = f"{workload.op}, {workload.name}, {target}"
                if len(made) > len(of_row[target]):
                    found.append(f"{where}: {len(made)} launches, {len(of_row[target])} before")
                for one, old in zip(made, of_row[target], strict=False):
                    worse = [name for name in names if getattr(one, name) > old[name]]
                    found += [f"{where}: {name} {getattr(one, name)}, {old[name]} before" for name in worse]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"counters: {one_line(error)}, expected those that this version wrote") from error
    return found
