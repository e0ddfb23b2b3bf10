"""``validate run``, ``parity``, ``quality`` and ``faults``: they judge, and leave a run folder with a report."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from validation.commands import Command, exit_status, progress
from validation.errors import UsageError
from validation.options import given

if TYPE_CHECKING:
    from validation.record import Record
    from validation.session import Session

    Show = Callable[[list[Record]], None]


def _run(options: argparse.Namespace) -> int:
    return _judge(options, parity=True, quality=True)


def _parity(options: argparse.Namespace) -> int:
    return _judge(options, parity=True)


def _quality(options: argparse.Namespace) -> int:
    return _judge(options, quality=True)


def _judge(options: argparse.Namespace, *, parity: bool = False, quality: bool = False) -> int:
    from validation.session import Session

    session = Session(given(**vars(options)), go_on=True)
    session.set_out(session.names if parity else (), quality=quality)
    ops = session.ops

    def work() -> None:
        progress(f"{ops.name} on {session.device.name}, seed {session.options.seed}, to {session.run.folder}")
        if parity:
            if ops.missing and not session.options.op:
                progress(f"{ops.name} does not provide: {', '.join(ops.missing)}")
            if session.judged:
                progress(f"judged to the end before the interruption: {', '.join(session.judged)}")
            left = tuple(name for name in session.names if name not in session.judged)
            _keep(session, session.sweep.of_ops(left, progress))
        if quality:
            _keep(session, session.quality(progress=progress))

    return _carried_out(session, work)


def _keep(session: "Session", records: "Iterator[Record]") -> None:
    for _ in session.keep(records):
        pass


def _carried_out(session: "Session", work: Callable[[], None], show: "Show | None" = None) -> int:
    """Do the work of a run, then write the report and print the table, also if it was interrupted."""
    from validation.report.terminal import print_table
    from validation.report.unfinished import left_of

    try:
        work()
        session.run.close()
    except KeyboardInterrupt as error:
        if not session.started:
            raise
        progress(f"interrupted by {str(error) or 'Ctrl-C'}: writing the report of what was judged")
    except UsageError:
        if session.started:
            with contextlib.suppress(UsageError):
                session.finish()
        raise
    path = session.finish()
    run = session.run
    if show is not None:
        show(run.records)
    if session.printed is not None:
        progress(f"what the ops printed is in {session.printed}")
    print_table(run.records, report=path, left=left_of(run.state, run.records))
    return exit_status((record.status for record in run.records), finished=run.closed)


def _faults(options: argparse.Namespace) -> int:
    from validation.faults.matrix import kill_matrix, selected
    from validation.report.fault_section import print_matrix
    from validation.run_plan import RunPlan
    from validation.session import Session

    chosen = {name: value for name, value in vars(options).items() if name not in ("fault", "op", "seeds")}
    session = Session(given(ops="reference_ops", **chosen))
    names, left_out = selected(options.fault, options.op, session.device)
    seeds = range(options.seed, options.seed + options.seeds)
    session.plan = RunPlan(faults=tuple(f"{name}, seed {seed}" for seed in seeds for name in names))

    def work() -> None:
        progress(f"{len(names)} planted faults on {session.device.name}, seeds {list(seeds)}, to {session.run.folder}")
        _keep(session, kill_matrix(names, session.device, session.profile, seeds, left_out=left_out, progress=progress))

    return _carried_out(session, work, print_matrix)


COMMANDS = (
    Command(
        "run",
        "parity, then quality, then the report",
        "The main job: parity of all ops, then the sampled models, then report.html in the run folder.",
        _run,
        samples=True,
    ),
    Command(
        "parity",
        "judge ops against their references",
        "Each op on generated cases (shapes, strides, dtypes, modulation forms, value regimes) against the\n"
        "reference op in float64, beside the reference op in the working dtype.",
        _parity,
    ),
    Command(
        "quality",
        "sample a model with reference and fused ops, compare what comes out",
        "Samples a model from the same seeds with reference ops and with the candidate's mounted on its sites, and\n"
        "compares: at each site along the truth's own trajectory; the latents' distance to the truth, beside legal\n"
        "replays of every rounding (the band, kept for the next run); the decoded frames in memory.",
        _quality,
        samples=True,
    ),
    Command(
        "faults",
        "plant bugs in the ops, and show that the suite catches each",
        "Judges wrong ops, each with one known bug, and prints the kill matrix: which check caught which bug, in\n"
        "which value regimes; with --gpu also those that only a GPU can show. Fails if a bug survives, or if no check\n"
        "that names it caught it.",
        _faults,
    ),
)
