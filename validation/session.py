"""What the command line and pytest share: the options, checked, and a run folder for the results."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from validation import device as devices
from validation.drift.measure import REPLAYS
from validation.errors import UsageError
from validation.executor import Executor, limit_of, load
from validation.files import check_writable
from validation.ops import OpSet, check_op_name
from validation.parity.profiles import profile_named
from validation.parity.regressions import save_failure
from validation.parity.sweep import Sweep
from validation.parity.xfail import XFail
from validation.record import Environment, Level, Record, Run
from validation.shape_options import ShapeOptions
from validation.verdict import TIERS, Tier

DEFAULT_OPS = "fused_ops"
DEFAULT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a run, as given.

    Attributes:
        ops: module, file or entry point of the candidate op set.
        names: of the ops to judge; empty for all that the set provides.
        profile: Hypothesis profile: quick, default, nightly.
        seed: all cases and samples follow from it.
        gpu: whether to run on the GPU.
        isolate: whether candidates run in a process of their own; None leaves it to the op set.
        case_seconds: the most that one case may take there, or None for `validation.executor.worker.LIMIT_SECONDS`.
        require: tier to hold the ops to, or None for the op set's default.
        xfail: file of known failures, or None.
        json: file to write the environment and records to, or None.
        junit: file to write JUnit XML to, or None.
        out: run folder, or None for a new one under ``runs/``.
        model: to sample, or None for all.
        checkpoint: folder of a real checkpoint, or None for the embedded one.
        sites: to mount, or None for all.
        prompts: file of what to sample, or None for the embedded one.
        replays: legal replays of each kind for each prompt; 0 leaves the drift out.
        cache: folder where the replays' distances are kept, or None for the user's cache.
        shape: options of ``--model hunyuan3d`` alone.
    """

    ops: str = DEFAULT_OPS
    names: tuple[str, ...] = ()
    profile: str = "default"
    seed: int = DEFAULT_SEED
    gpu: bool = False
    isolate: bool | None = None
    case_seconds: float | None = None
    require: str | None = None
    xfail: Path | None = None
    json: Path | None = None
    junit: Path | None = None
    out: Path | None = None
    model: str | None = None
    checkpoint: Path | None = None
    sites: tuple[str, ...] | None = None
    prompts: Path | None = None
    replays: int = REPLAYS
    cache: Path | None = None
    shape: ShapeOptions = dataclasses.field(default_factory=ShapeOptions)


class Session:
    """Options that have been checked, the loaded op set, and the run being written.

    Attributes:
        options: as given.
        device: where it runs.
        executor: who runs the candidates.
        names: the ops to judge.
        profile: resolved.
        require: the tier asked for, the op set's default where none was.
        xfail: the known failures, none where no file was given.
        folder: where the run is written; made with `run`.
    """

    def __init__(self, options: Options, shared_folder: Path | None = None) -> None:
        """Check everything that can be checked before any work, and select the device.

        Args:
            options: as given.
            shared_folder: the run folder of another process, which gathers the records of this one.

        Raises:
            UsageError: any of the options cannot be met.
        """
        self.options = options
        self.profile = profile_named(options.profile)
        if options.require is not None and options.require not in TIERS:
            raise UsageError(f"--require: unknown tier {options.require!r}, expected one of: {', '.join(TIERS)}")
        if options.seed < 0:
            raise UsageError(f"--seed: {options.seed}, expected an integer >= 0")
        limit = limit_of(options.case_seconds)
        for name in options.names:
            check_op_name(name)
        for option, path in (("--json", options.json), ("--junit", options.junit)):
            if path is not None:
                check_writable(path, option)
        self.device = devices.select(options.gpu)
        self.executor: Executor = load(options.ops, self.device, isolate=options.isolate, limit=limit)
        for name in options.names:
            if name not in self.ops:
                raise UsageError(f"--op: {options.ops} does not provide {name}, expected one of: {self._provided()}")
        self.names = options.names or tuple(self.ops.functions)
        self.require = Tier(options.require) if options.require is not None else self.ops.default_tier
        self.xfail = XFail.read(options.xfail) if options.xfail is not None else XFail()
        for entry in self.xfail.entries:
            if entry.op not in self.ops:
                raise UsageError(
                    f"--xfail: {entry.where}: {options.ops} does not provide {entry.op}, expected: {self._provided()}"
                )
        self._run: Run | None = None
        self._shared = shared_folder is not None
        self.folder = shared_folder or options.out or Run.new_folder()

    @property
    def ops(self) -> OpSet:
        """The candidate op set."""
        return self.executor.ops

    @property
    def sweep(self) -> Sweep:
        """How the options judge ops."""
        return Sweep(self.executor, self.profile, self.options.seed, self.require, self.xfail)

    def _provided(self) -> str:
        return ", ".join(self.ops.functions)

    @property
    def run(self) -> Run:
        """The run folder; made when first asked for."""
        if self._run is None:
            environment = Environment.capture(
                device=self.device.name, seed=self.options.seed, profile=self.profile.name
            )
            self._run = Run(self.folder, environment, shared=self._shared)
        return self._run

    @property
    def started(self) -> bool:
        """True once something was run."""
        return self._run is not None

    def keep(self, records: Iterator[Record]) -> Iterator[Record]:
        """Pass records on, each added to the run; the smallest failures are kept as files of their own."""
        for record in records:
            self.run.add(record)
            if record.level is Level.OP and record.status.failed:
                save_failure(self.run.folder, record, self.ops.origin)
            yield record

    def finish(self) -> Path:
        """Write the report, and the files asked for with --json and --junit; return the report's path.

        The process of an isolated op set ends.
        """
        from validation.report.html import write_report
        from validation.report.junit import write_junit

        if self.options.json is not None:
            write_json(self.options.json, self.run)
        if self.options.junit is not None:
            write_junit(self.run.records, self.options.junit)
        self.executor.close()
        return write_report(self.run.folder)


def write_json(path: Path, run: Run) -> None:
    """Write a run as one JSON object: ``{"environment": {...}, "records": [...]}``."""
    data = {
        "environment": dataclasses.asdict(run.environment),
        "records": [json.loads(record.to_json()) for record in run.records],
    }
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)
