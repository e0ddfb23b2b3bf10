"""The one schema in which every result is kept, and the folder it is kept in.

A run folder holds ``environment.json`` (an `Environment`), ``records.jsonl`` (one `Record` a line, in the
order in which they were made), the files that records name under ``artifacts``, and ``report.html``.
"""

import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from validation.errors import UsageError
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


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


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


class Run:
    """A run folder being written.

    Attributes:
        folder: its path.
        records: what was added so far.
    """

    def __init__(self, folder: Path, environment: Environment, *, shared: bool = False) -> None:
        """Make the folder and write the environment.

        Args:
            folder: its path.
            environment: of this process.
            shared: whether another process writes the environment and the records; artifacts go there either way.

        Raises:
            UsageError: the folder cannot be made or written, or holds another run.
        """
        self.folder, self.environment, self.shared = folder, environment, shared
        self.records: list[Record] = []
        if (folder / "records.jsonl").exists() and not shared:
            raise UsageError(f"{folder} holds a run already, expected a new or empty folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if shared:
                return
            text = json.dumps(dataclasses.asdict(environment), indent=2)
            (folder / "environment.json").write_text(text + "\n")
            (folder / "records.jsonl").touch()
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}, expected a writable folder") from error

    def add(self, record: Record) -> None:
        """Append a record, also to ``records.jsonl`` unless the folder is shared."""
        self.records.append(record)
        if self.shared:
            return
        with (self.folder / "records.jsonl").open("a") as file:
            file.write(record.to_json() + "\n")

    @staticmethod
    def new_folder(root: Path = Path("runs")) -> Path:
        """A new folder name below root: the UTC time, with a number if that is taken."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder, n = root / stamp, 1
        while folder.exists():
            n += 1
            folder = root / f"{stamp}-{n}"
        return folder


def read_run(folder: Path) -> tuple[Environment, list[Record]]:
    """The environment and the records of a run folder.

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
    for line in path.read_text().splitlines():
        if line.strip():
            yield Record.from_json(line)
