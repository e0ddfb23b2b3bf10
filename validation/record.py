"""The one schema in which every result is kept, and the folder it is kept in.

A run folder holds ``environment.json`` (an `Environment`), ``plan.json`` and ``closed.json`` (`validation.run_plan`),
``records.jsonl`` (one `Record` a line, in the order in which they were made), the files that records name under
``artifacts``, and ``report.html``.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from validation.errors import UsageError
from validation.files import append_line, write_text
from validation.run_plan import RunPlan, RunState, close
from validation.verdict import Status, Tier

SCHEMA = 1


class Level(StrEnum):
    """Which of the three questions a record answers, or what it says about the suite itself."""

    OP = "op"
    MODEL = "model"
    SAMPLE = "sample"
    FAULT = "fault"  # a planted fault: was it caught?
    RUN = "run"  # about the run itself: a corner not reached, bfloat16 not judged


@dataclasses.dataclass(frozen=True)
class Record:
    """One judged result.

    Attributes:
        level: op, model, sample, fault or run.
        subject: the op's name, or the model's.
        op_set: the candidate op set's name.
        status: the verdict.
        check: the check that decided (the stage of the judge that failed, or the last one passed).
        reason: the verdict in one sentence, with its numbers.
        case: what was run, enough to run it again: a `Case` for an op; model, prompt, seed, steps for a sample.
        dtype: the working dtype, in torch's names (``bfloat16``).
        tier: the tier reached; None if the record failed or has none.
        numbers: scalars by name. For an op those of `judge.stats.Errors`; for a sample ``psnr`` (dB,
            pooled), ``psnr_worst_frame``, ``ssim_mean``, ``ssim_worst_frame``, ``worst_frame``, site counts.
        series: lists of numbers by name, such as ``psnr_per_frame`` (dB) and ``ssim_per_frame``.
        artifacts: files by role, relative to the run folder (``reference_frames``, ``candidate_frames``, ...).
        seconds: wall-clock seconds by stage (``truth``, ``baseline``, ``candidate``, ``judge``; ``encode``,
            ``denoise``, ``decode``, ``save``).
        message: the verdict as an engineer reads it, several lines; empty where nothing failed.
        repro: a command line that repeats this record.
        corners: the declared corners that the case reached.
        measures: which numbers of a sample are distances, and how they are shown. players: how its artifacts are
            shown. `validation.samples.model` describes both.
    """

    level: Level
    subject: str
    op_set: str
    status: Status
    check: str
    reason: str
    case: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = ""
    tier: Tier | None = None
    numbers: dict[str, float | int | str | None] = dataclasses.field(default_factory=dict)
    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    message: str = ""
    repro: str = ""
    corners: list[str] = dataclasses.field(default_factory=list)
    measures: list[dict[str, str]] = dataclasses.field(default_factory=list)
    players: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def output_dtypes(self) -> tuple[str, ...]:
        """The dtype of each of an op's outputs, in order."""
        named = self.numbers.get("output_dtypes")
        return tuple(named.split()) if isinstance(named, str) else (self.dtype,)

    def of_output(self, name: str, output: int, dtype: str) -> float | None:
        """A number of an op's output: ``rms_ratio``, ``max_ratio``, a bias; None without one, or without the output."""
        if self.output_dtypes[output : output + 1] != (dtype,):
            return None
        value = self.numbers.get(f"{name}_{output}" if "output_dtypes" in self.numbers else name)
        return float(value) if isinstance(value, (int, float)) else None

    def to_json(self) -> str:
        """One line of strict JSON; numbers that JSON lacks become the strings "inf", "-inf", "nan"."""
        data = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return json.dumps(_encode(data), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a line written by `to_json`.

        Raises:
            UsageError: the text is no record of this schema.
        """
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise UsageError(f"record has another schema than {SCHEMA}")
            for field in ("numbers", "series", "seconds"):
                data[field] = _decode(data[field])
            data["level"], data["status"] = Level(data["level"]), Status(data["status"])
            data["tier"] = None if data["tier"] is None else Tier(data["tier"])
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"not a record: {error}: {text[:120]!r}") from error


def numbered_outputs(records: Iterable[Record]) -> list[tuple[int, str]]:
    """The outputs that records of one op have: number and dtype of each."""
    return sorted({one for record in records for one in enumerate(record.output_dtypes)})


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def size_of(record: Record) -> tuple[bool, float, int]:
    """The order in which cases of one kind of failure are shown: the smallest first.

    Rows of one number and empty tensors come last: what fails there alone is a matter of manners.
    """
    shapes = [spec["shape"] for spec in record.case.get("tensors", {}).values()]
    odd = any(isinstance(shape, list) and (0 in shape or shape[-1:] == [1]) for shape in shapes)
    elements = record.numbers.get("elements")
    known = isinstance(elements, (int, float)) and not math.isnan(elements)
    return odd, float(elements or 0) if known else math.inf, len(json.dumps(record.case))


def _decode(value: Any) -> Any:
    if isinstance(value, str) and value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value


@dataclasses.dataclass(frozen=True)
class Environment:
    """The environment of a run.

    Attributes:
        started: UTC, ISO 8601.
        command: the command line.
        device: ``interpreter`` or the GPU's name.
        cpu: the processor's name and count of usable cores.
        python, torch, triton, cuda, diffusers: versions ("" where absent).
        commit: git commit of the checkout, with ``+`` where it has uncommitted changes; "" outside git.
        seed: the seed from which all cases are drawn.
        profile: the profile of the sweeps.
        options: the options that are not at their default, by name (`validation.options.chosen`).
    """

    started: str
    command: str
    device: str
    cpu: str
    python: str
    torch: str
    triton: str
    cuda: str
    diffusers: str
    commit: str
    seed: int
    profile: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def capture(cls, *, device: str, seed: int, profile: str, options: Mapping[str, Any] | None = None) -> Self:
        """Read the environment of this process."""
        from importlib.metadata import PackageNotFoundError, version

        import torch

        def version_of(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return ""

        return cls(
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=" ".join([_program(), *sys.argv[1:]]),
            device=device,
            cpu=f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores",
            python=platform.python_version(),
            torch=torch.__version__,
            triton=version_of("triton"),
            cuda=torch.version.cuda or "",
            diffusers=version_of("diffusers"),
            commit=_commit(),
            seed=seed,
            profile=profile,
            options=dict(options or {}),
        )


def _program() -> str:
    """``validate``, or ``pytest`` where that is run as a module."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not say."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match.group(1) if match else platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def op_is_judged(op: str, records: Iterable[Record]) -> bool:
    """Whether an op was judged to the end: its last record is about all its cases, or says why the rest was left."""
    whole = (record for record in records if record.level is Level.RUN and record.subject == op)
    return any("cases" in record.numbers or record.check == "runs" for record in whole)


class Run:
    """A run folder being written.

    Attributes:
        folder: its path.
        records: what was added so far; at first those of the ops that an interrupted run had judged to the end.
        plan: what the run sets out to judge.
        closed: whether all of it was judged.
    """

    def __init__(
        self,
        folder: Path,
        environment: Environment,
        *,
        shared: bool = False,
        plan: RunPlan | None = None,
        go_on: bool = False,
    ) -> None:
        """Make the folder; write the environment and the plan.

        Args:
            folder: its path.
            environment: of this process.
            shared: whether another process writes the environment and the records; artifacts go there either way.
            plan: what the run sets out to judge; None writes none.
            go_on: whether a folder that holds an interrupted run of the same plan and environment is taken over.

        Raises:
            UsageError: the folder cannot be made or written, or holds another run.
        """
        self.folder, self.environment, self.shared = folder, environment, shared
        self.plan, self.closed = plan, False
        self.records: list[Record] = []
        if (folder / "records.jsonl").exists() and not shared:
            self.records = _of_judged_ops(folder, environment, plan if go_on else None)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}, expected a writable folder") from error
        if shared:
            return
        write_text(folder / "environment.json", json.dumps(dataclasses.asdict(environment), indent=2) + "\n")
        if plan is not None:
            plan.write(folder)
        write_text(folder / "records.jsonl", "".join(record.to_json() + "\n" for record in self.records))

    def add(self, record: Record) -> None:
        """Append a record, also to ``records.jsonl`` unless the folder is shared; UsageError if that cannot be done."""
        if not self.shared:
            append_line(self.folder / "records.jsonl", record.to_json())
        self.records.append(record)

    def close(self) -> None:
        """Write that all of the plan was judged; UsageError if it cannot be written."""
        if not self.shared and self.plan is not None:
            close(self.folder, len(self.records))
        self.closed = True

    @property
    def state(self) -> RunState | None:
        """How far the run came; None if it has no plan."""
        return None if self.plan is None else RunState(self.plan, len(self.records) if self.closed else None)

    @staticmethod
    def new_folder(root: Path = Path("runs")) -> Path:
        """A new folder name below root: the UTC time, with a number if that is taken."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder, n = root / stamp, 1
        while folder.exists():
            n += 1
            folder = root / f"{stamp}-{n}"
        return folder


# What must be equal for a run to go on where another was cut.
_SAME = ("device", "torch", "triton", "diffusers", "commit", "seed", "profile", "options")
# Options that say where results go, not what they are.
_ELSEWHERE = frozenset({"json", "junit", "out"})


def _of_judged_ops(folder: Path, environment: Environment, plan: RunPlan | None) -> list[Record]:
    """The records of the ops that an interrupted run had judged to the end.

    Raises:
        UsageError: the run in the folder was finished, or is another one.
    """
    wanted = "expected a new or empty folder"
    if plan is None or RunPlan.read(folder) is None:
        raise UsageError(f"{folder} holds a run already, {wanted}")
    before, records = read_run(folder)
    if RunState.read(folder).finished(len(records)):
        raise UsageError(f"{folder} holds a run already, which was finished, {wanted}")
    here, there = (
        dataclasses.asdict(e) | {"options": {k: v for k, v in e.options.items() if k not in _ELSEWHERE}}
        for e in (environment, before)
    )
    differ = [name for name in _SAME if here[name] != there[name]]
    if differ or RunPlan.read(folder) != plan:
        what = ", ".join(differ) or "ops, cases or files"
        raise UsageError(f"{folder} holds a run already, which was cut and had other {what}, {wanted}")
    judged = {op for op in plan.ops if op_is_judged(op, records)}
    return [record for record in records if record.subject in judged and record.level in (Level.OP, Level.RUN)]


def read_run(folder: Path) -> tuple[Environment, list[Record]]:
    """The environment and the records of a run folder; a last line that was cut is left out.

    Raises:
        UsageError: it is no run folder, or a file in it is damaged.
    """
    for name in ("environment.json", "records.jsonl"):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} has no {name}, expected a run folder (such as runs/20260101-120000)")
    try:
        environment = Environment(**json.loads((folder / "environment.json").read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{folder / 'environment.json'}: {error}, expected an environment of schema {SCHEMA}"
        ) from error
    return environment, list(_read_records(folder / "records.jsonl"))


def _read_records(path: Path) -> Iterator[Record]:
    # A process that was killed while it wrote leaves a line without its end.
    *lines, last = path.read_text().split("\n")
    for line in lines:
        if line.strip():
            yield Record.from_json(line)
    if last.strip():
        with contextlib.suppress(UsageError):
            yield Record.from_json(last)
