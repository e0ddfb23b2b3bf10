"""What the command line and pytest share: the loaded op set, and a run folder for the results."""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from validation import device as devices
from validation.errors import UsageError
from validation.executor import Executor, limit_of, load
from validation.ops import OpSet, check_op_name
from validation.parity.profiles import profile_named
from validation.parity.regressions import save_failure
from validation.parity.sweep import Sweep
from validation.parity.xfail import XFail
from validation.record import Environment, Level, Record, Run
from validation.verdict import Tier


class Session:
    """Options that have been checked, the loaded op set, and the run being written.

    Attributes:
        options: as given (`validation.options.given`).
        device: where it runs.
        executor: who runs the candidates.
        names: the ops to judge.
        profile: resolved.
        require: the tier asked for, the op set's default where none was.
        xfail: the known failures, none where no file was given.
        folder: where the run is written; made with `run`.
    """

    def __init__(self, options: argparse.Namespace, shared_folder: Path | None = None) -> None:
        """Check everything that can be checked before any work, and select the device.

        Args:
            options: as given.
            shared_folder: the run folder of another process, which gathers the records of this one.

        Raises:
            UsageError: any of the options cannot be met.
        """
        self.options = options
        self.profile = profile_named(options.profile)
        limit = limit_of(options.case_seconds)
        for name in options.op:
            check_op_name(name)
        self.device = devices.select(options.gpu)
        self.executor: Executor = load(options.ops, self.device, isolate=options.isolate, limit=limit)
        provided = ", ".join(self.ops.functions)
        for name in options.op:
            if name not in self.ops:
                raise UsageError(f"--op: {options.ops} does not provide {name}, expected one of: {provided}")
        self.names = tuple(options.op or self.ops.functions)
        self.require = self.ops.default_tier if options.require is None else Tier(options.require)
        self.xfail = XFail.read(options.xfail) if options.xfail is not None else XFail()
        for entry in self.xfail.entries:
            if entry.op not in self.ops:
                raise UsageError(
                    f"--xfail: {entry.where}: {options.ops} does not provide {entry.op}, expected: {provided}"
                )
        self._run: Run | None = None
        self._shared = shared_folder is not None
        self.folder: Path = shared_folder or options.out or Run.new_folder()

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

    @property
    def ops(self) -> OpSet:
        """The candidate op set."""
        return self.executor.ops

    @property
    def sweep(self) -> Sweep:
        """How the options judge ops."""
        return Sweep(self.executor, self.profile, self.options.seed, self.require, self.xfail)

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
