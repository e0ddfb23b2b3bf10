"""What the command line and pytest share: the loaded op set, and a run folder for the results."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from validation import device as devices
from validation.errors import UsageError
from validation.executor import Executor, limit_of, load
from validation.files import write_text
from validation.ops import OpSet, check_op_name
from validation.ops.sources import source_digests, suite_digest
from validation.options import chosen, repeat_line
from validation.parity.profiles import profile_named
from validation.parity.regressions import save_failure
from validation.parity.sweep import Sweep
from validation.parity.xfail import XFail
from validation.record import Environment, Level, Record, Run, op_is_judged
from validation.run_plan import RunPlan
from validation.samples import registry
from validation.samples.registry import model_class
from validation.verdict import Tier

if TYPE_CHECKING:
    from validation.samples.request import Request


# What candidates print, below the run folder.
PRINTED = "printed.txt"


class Session:
    """Options that have been checked, the loaded op set, and the run being written.

    Attributes:
        options: as given (`validation.options.given`).
        device: where the ops run.
        executor: runs the candidates.
        names: the ops to judge.
        profile: the resolved profile.
        require: the tier that each op, and the drift, must reach.
        xfail: the known failures; none if no file was given.
        folder: where the run is written; created with `run`.
        plan: what the run sets out to judge; set before `run` is asked for, or else none is written.
    """

    def __init__(self, options: argparse.Namespace, shared_folder: Path | None = None, *, go_on: bool = False) -> None:
        """Check everything that can be checked before any work, and select the device.

        Args:
            options: as given.
            shared_folder: the run folder of another process, which gathers the records of this one.
            go_on: whether to go on with an interrupted run in the run folder.

        Raises:
            UsageError: an option cannot be met.
        """
        self.options = options
        self.profile = profile_named(options.profile)
        limit = limit_of(options.case_seconds)
        for name in options.op:
            check_op_name(name)
        self.device = devices.select(options.gpu, options.compiled, options.races)
        self.executor: Executor = load(options.ops, self.device, isolate=options.isolate, limit=limit)
        provided = ", ".join(self.ops.functions)
        for name in options.op:
            if name not in self.ops:
                raise UsageError(f"--op: {options.ops} does not provide {name}, expected one of: {provided}")
        self.names = tuple(options.op or self.ops.functions)
        self.require = Tier(options.require)
        self.xfail = XFail.read(options.xfail) if options.xfail is not None else XFail()
        for entry in self.xfail.entries:
            if entry.op not in self.ops:
                raise UsageError(
                    f"--xfail: {entry.where}: {options.ops} does not provide {entry.op}, expected: {provided}"
                )
        self.plan: RunPlan | None = None
        self._go_on = go_on
        self._run: Run | None = None
        self._shared = shared_folder is not None
        self.folder: Path = shared_folder or options.out or Run.new_folder()

    @property
    def run(self) -> Run:
        """The run folder; made when first asked for."""
        if self._run is None:
            environment = Environment.capture(
                device=self.device.name,
                seed=self.options.seed,
                profile=self.profile.name,
                options=chosen(self.options),
            )
            self._run = Run(self.folder, environment, shared=self._shared, plan=self.plan, go_on=self._go_on)
            self.executor.print_to(self.folder / PRINTED)
        return self._run

    def set_out(self, ops: Sequence[str], *, quality: bool) -> None:
        """Plan the run, before any work and without loading weights.

        Args:
            ops: the ops that parity will judge.
            quality: whether `quality` will sample models.

        Raises:
            UsageError: as `check_quality` says.
        """
        models = self.check_quality() if quality else {}
        cases = {op: self.sweep.cases(op) for op in ops}
        self.plan = RunPlan(cases, models, digests={"suite": suite_digest(), **source_digests(self.ops)})

    @property
    def judged(self) -> tuple[str, ...]:
        """The ops that an interrupted run in the folder had judged to the end."""
        return tuple(op for op in self.names if op_is_judged(op, self.run.records))

    @property
    def printed(self) -> Path | None:
        """The file that holds what candidates in a process of their own printed; None if they printed nothing."""
        path = self.folder / PRINTED
        return path if path.is_file() and path.stat().st_size else None

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
        """The sweep that judges ops as the options say."""
        return Sweep(
            self.executor,
            self.profile,
            self.options.seed,
            self.require,
            self.xfail,
            results_only=self.options.results_only,
        )

    def keep(self, records: Iterator[Record]) -> Iterator[Record]:
        """Add each record to the run and pass it on; the failures of ops are also saved as files (`save_failure`)."""
        for record in records:
            self.run.add(record)
            if record.level is Level.OP and record.status.failed:
                save_failure(self.run.folder, record, self.ops.origin)
            yield record

    def models(self) -> tuple[str, ...]:
        """The models to sample: the one that was named, or else those that fit the options and call an op of the set.

        Raises:
            UsageError: an unknown model, or an option that it does not have.
        """
        options, own = self.options, self._own()
        if options.model is not None:
            kind = model_class(options.model)
            for option, name in own.items():
                if name != options.model:
                    words = f"--{option.replace('_', '-')}: {options.model} has no such option"
                    raise UsageError(f"{words}, expected --model {name}")
            return (kind.name,)
        classes = {name: model_class(name) for name in registry.names() if set(own.values()) <= {name}}
        found = [name for name, kind in classes.items() if options.until is None or options.until in kind.ends()]
        if not found:
            ends = dict.fromkeys(end for kind in classes.values() for end in kind.ends())
            raise UsageError(f"--until: {options.until!r}, expected one of: {', '.join(ends)}")
        if self._of_one_model():
            return (found[0],)
        return tuple(name for name in found if classes[name].ops() & set(self.ops.functions))

    def _own(self) -> dict[str, str]:
        """Model by option, for the given options that only one model has."""
        options_of = {option: name for name in registry.names() for option in registry.options_of(name)}
        return {o.key: name for o, name in options_of.items() if getattr(self.options, o.key) not in (None, [])}

    def _of_one_model(self) -> bool:
        """Whether an option was given that fits one model only."""
        options = self.options
        given = (options.model, options.sites, options.checkpoint, options.prompts)
        return bool(self._own()) or any(value is not None for value in given)

    def check_quality(self) -> dict[str, list[str]]:
        """Check what `quality` will sample, before any work and without loading weights; names the samples by model.

        Raises:
            UsageError: an unknown model or site, nothing to mount, a bad file, an unwritable folder.
        """
        from validation.samples.run import plan

        samples = {}
        for name in self.models():
            model, _ = plan(model_class(name), self.ops, self._request(name, self.options.out))
            samples[name] = [f"{prompt.name}, seed {prompt.seed}" for prompt in model.prompts]
        return samples

    def quality(self, progress: Callable[[str], None] = lambda _text: None) -> Iterator[Record]:
        """Judge the op set by sampled models, and keep the samples in the run folder.

        If no model was named, models that call none of the set's ops are skipped.
        """
        from validation.samples.run import run

        self.executor.close()  # the model runs in this process, and needs the GPU memory that the other one holds
        for name in registry.names():
            if not self._of_one_model() and not model_class(name).ops() & set(self.ops.functions):
                progress(f"{name}: calls no op that {self.ops.name} provides, not sampled")
        for name in self.models():
            yield from run(model_class(name), self.ops, self._request(name, self.run.folder, progress))

    def _request(
        self, name: str, folder: Path | None, progress: Callable[[str], None] = lambda _text: None
    ) -> "Request":
        """The request to sample a model, with its repeat line."""
        from validation.samples.request import Request

        options, kind = self.options, model_class(name)
        embedded = options.checkpoint is not None and options.checkpoint.resolve() == kind.default_checkpoint
        given = {option: getattr(options, option) for option in self._own()}
        varied = {key: getattr(options, key) for key in ("until", "steps", "guidance")}
        repro = repeat_line(
            "quality",
            always=("ops",),
            model=name,
            ops=self.ops.origin,
            sites=options.sites,
            checkpoint=None if embedded else options.checkpoint,
            prompts=options.prompts,
            seed=options.seed,
            replays=options.replays,
            require=self.require,
            **varied,
            **given,
            seeds=options.seeds,
            **self.device.options,
        )
        return Request(
            self.device,
            options.checkpoint,
            options.sites,
            options.prompts,
            seed=options.seed,
            seeds=options.seeds,
            **varied,
            own={option: tuple(value) if isinstance(value, list) else value for option, value in given.items()},
            replays=options.replays,
            require=self.require,
            cache=options.cache,
            folder=folder,
            repro=repro,
            progress=progress,
        )

    def finish(self) -> Path:
        """Write the report, and the files asked for with --json and --junit; return the report's path.

        Ends the process of an isolated op set.
        """
        from validation.report.html import write_report
        from validation.report.junit import write_junit
        from validation.report.unfinished import left_of

        self.executor.close()
        if self.options.json is not None:
            write_json(self.options.json, self.run)
        if self.options.junit is not None:
            write_junit(self.run.records, self.options.junit, left_of(self.run.state, self.run.records))
        return write_report(self.run.folder)


def write_json(path: Path, run: Run) -> None:
    """Write a run as one JSON object: ``{"environment": {...}, "plan": {...}, "finished": ..., "records": [...]}``.

    Raises:
        UsageError: the file cannot be written.
    """
    data = {
        "environment": dataclasses.asdict(run.environment),
        "plan": None if run.plan is None else dataclasses.asdict(run.plan),
        "finished": run.closed,
        "records": [json.loads(record.to_json()) for record in run.records],
    }
    write_text(path, json.dumps(data, indent=1) + "\n")
