"""The ``validate`` command."""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from validation.errors import UsageError

PASSED, FAILED, USAGE, INCONCLUSIVE = 0, 1, 2, 3

DESCRIPTION = """\
Is a fused op safe to land? One rule: the fused path may be no further from the truth than the path that it
replaces, measured, on inputs chosen to hurt.

  validate run                                the main job: parity, then quality, then a report to open
  validate parity --op layer_norm_scale_shift one op, over shapes, layouts, dtypes and value regimes
  validate parity --ops my_kernels.py         your own ops: a file or module that defines some of them
  validate quality --model helios             a whole sampled video, reference against fused
  validate faults                             planted bugs, each of which the suite must catch
  validate repro '{"op": ...}'                one case again, from a failure's last line
"""

EPILOG = """\
exit status: 0 all passed, 1 a verdict failed, 2 usage error, 3 inconclusive
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="validate", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help_text,
            description=description,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    run = command(
        "run",
        "parity, then quality, then the report",
        "The main job: parity of all ops, then the sampled models, then report.html in the run folder.",
    )
    parity = command(
        "parity",
        "judge ops against their references",
        "Each op on generated cases (shapes, strides, dtypes, modulation forms, value regimes) against the\n"
        "reference op in float64, beside the reference op in the working dtype.",
    )
    quality = command(
        "quality",
        "sample a model with reference and fused ops, compare what comes out",
        "Samples a model twice with the same seed, with reference ops and with the candidate's mounted on its\n"
        "sites, and compares the decoded frames in memory: PSNR, SSIM, worst frame, worst tile.",
    )
    faults = command(
        "faults",
        "plant bugs in the ops, and show that the suite catches each",
        "Judges wrong ops, each with one known bug, and prints the kill matrix: which check caught which bug, in\n"
        "which value regimes. Fails if a bug survives, or if no check that names it caught it.",
    )
    repro = command(
        "repro",
        "judge one case again",
        "Judges one case again: the JSON text of a failure's last line, or a file that holds it.",
    )
    report = command("report", "write report.html of a run folder", "Writes report.html of a run folder again.")

    for sub in (run, parity, quality, repro):
        sub.add_argument(
            "--ops",
            metavar="MODULE_OR_FILE",
            default="fused_ops",
            help="op set to judge: an importable module, a .py file or an entry point's name (default: fused_ops)",
        )
        sub.add_argument("--gpu", action="store_true", help="run on the GPU; a usage error where there is none")
    for sub in (run, parity, repro):
        sub.add_argument(
            "--isolate",
            action=argparse.BooleanOptionalAction,
            help="run candidates in a process of their own, which may hang or crash (default: all that are not ours)",
        )
    faults.add_argument("--gpu", action="store_true", help="run on the GPU, the faults that only it can show as well")
    faults.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="so many seeds, --seed the first (default: 1)"
    )
    faults.add_argument("--fault", action="append", default=[], metavar="NAME", help="this one only; may be repeated")
    for sub in (run, parity, quality, faults):
        sub.add_argument("--seed", type=int, default=0, metavar="N", help="everything is drawn from it (default: 0)")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write environment and records as JSON as well")
        sub.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML as well, for a CI system to show")
        sub.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: a new one under runs/)")
    for sub in (run, parity, faults):
        sub.add_argument(
            "--profile", choices=("quick", "default", "nightly"), default="default", help="how many cases an op gets"
        )
    for sub in (run, parity):
        sub.add_argument(
            "--require",
            metavar="TIER",
            help="hold every op to bit-exact, lossless or close (default: lossless for fused_ops, close for others)",
        )
    for sub in (run, parity):
        sub.add_argument(
            "--xfail", type=Path, metavar="FILE", help="known failures: op[:status or corner][:dtype]  # reason"
        )
    faults.add_argument("--op", action="append", default=[], metavar="NAME", help="faults of this op; may be repeated")
    parity.add_argument("--op", action="append", default=[], metavar="NAME", help="judge this op only; may be repeated")
    for sub in (run, quality):
        sub.add_argument("--model", metavar="NAME", help="model to sample: helios (default: all)")
    quality.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint in diffusers' folder format")
    quality.add_argument(
        "--sites", metavar="SITE[,SITE]", help="mount only these sites (default: every site whose op the set provides)"
    )
    repro.add_argument("case", metavar="CASE", help="JSON text of a case, or the path of a file that holds it")
    report.add_argument("folder", type=Path, metavar="RUN_DIR", help="such as runs/20260101-120000")
    return parser


def _progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _session_command(arguments: argparse.Namespace) -> int:
    from validation import parity
    from validation.report.terminal import print_table
    from validation.session import Options, Session

    sites = getattr(arguments, "sites", None)
    session = Session(
        Options(
            ops=arguments.ops,
            names=tuple(getattr(arguments, "op", ())),
            profile=getattr(arguments, "profile", "default"),
            seed=arguments.seed,
            gpu=arguments.gpu,
            isolate=getattr(arguments, "isolate", None),
            require=getattr(arguments, "require", None),
            xfail=getattr(arguments, "xfail", None),
            json=arguments.json,
            junit=arguments.junit,
            out=arguments.out,
            model=getattr(arguments, "model", None),
            checkpoint=getattr(arguments, "checkpoint", None),
            sites=tuple(sites.split(",")) if sites else None,
        )
    )
    if arguments.command in ("run", "quality"):
        from validation.quality import check_request

        check_request(session)
    _progress(f"{session.ops.name} on {session.device.name}, seed {session.options.seed}, to {session.run.folder}")
    if arguments.command in ("run", "parity"):
        if session.ops.missing and not session.options.names:
            _progress(f"{session.ops.name} does not provide: {', '.join(session.ops.missing)}")
        for _ in session.keep(
            parity.parity(
                session.ops,
                session.names,
                session.device,
                profile=session.profile,
                seed=session.options.seed,
                require=session.require,
                xfail=session.xfail,
                progress=_progress,
            )
        ):
            pass
    if arguments.command in ("run", "quality"):
        from validation.quality import quality

        for _ in session.keep(quality(session, progress=_progress)):
            pass
    path = session.finish()
    print_table(session.run.records, report=path)
    return exit_status([record.status for record in session.run.records])


def _faults(arguments: argparse.Namespace) -> int:
    from validation.faults.matrix import kill_matrix, selected
    from validation.report.fault_section import print_matrix
    from validation.report.terminal import print_table
    from validation.session import Options, Session

    if arguments.seeds < 1:
        raise UsageError(f"--seeds: {arguments.seeds}, expected an integer >= 1")
    session = Session(
        Options(
            ops="reference_ops",
            profile=arguments.profile,
            seed=arguments.seed,
            gpu=arguments.gpu,
            json=arguments.json,
            junit=arguments.junit,
            out=arguments.out,
        )
    )
    names, left_out = selected(arguments.fault, arguments.op, session.device)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    _progress(f"{len(names)} planted faults on {session.device.name}, seeds {list(seeds)}, to {session.run.folder}")
    for _ in session.keep(
        kill_matrix(names, session.device, session.profile, seeds, left_out=left_out, progress=_progress)
    ):
        pass
    path = session.finish()
    print_matrix(session.run.records)
    print_table(session.run.records, report=path)
    return exit_status([record.status for record in session.run.records])


def exit_status(statuses: Sequence[object]) -> int:
    """The exit status of a run: nothing run is a failure, a failure outweighs an inconclusive result."""
    from validation.record import Status

    known = [Status(str(status)) for status in statuses]
    if all(status is Status.NOT_EXPRESSED for status in known) or any(status.failed for status in known):
        return FAILED
    return INCONCLUSIVE if Status.INCONCLUSIVE in known else PASSED


def _repro(arguments: argparse.Namespace) -> int:
    from validation import parity
    from validation.cases.case import Case
    from validation.device import select
    from validation.isolation import isolated, isolated_by_default
    from validation.ops import check_op_name, load_op_set

    text: str = arguments.case
    case = Case.from_json(text) if text.lstrip().startswith("{") else parity.read_case(Path(text))
    device = select(arguments.gpu)
    check_op_name(case.op)
    ops = load_op_set(arguments.ops)
    if isolated_by_default(ops) if arguments.isolate is None else arguments.isolate:
        ops = isolated(ops, gpu=arguments.gpu)
    record = parity.run(case, ops, device)
    if device.bfloat16_problems and case.dtype == "bfloat16":
        raise UsageError(f"bfloat16 cannot be judged: {'; '.join(device.bfloat16_problems)}")
    print(record.message or f"{record.subject}  {record.op_set}  {record.status} ({record.tier})\n{record.reason}")
    return exit_status([record.status])


def _report(arguments: argparse.Namespace) -> int:
    from validation.record import read_run
    from validation.report.html import write_report
    from validation.report.terminal import print_table

    _, records = read_run(arguments.folder)
    print_table(records, report=write_report(arguments.folder))
    return PASSED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # NumPy says so under the interpreter wherever a case holds NaN or inf on purpose.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(triton|numpy)\.")
    try:
        if arguments.command == "repro":
            return _repro(arguments)
        if arguments.command == "report":
            return _report(arguments)
        if arguments.command == "faults":
            return _faults(arguments)
        return _session_command(arguments)
    except UsageError as error:
        print(f"validate: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("validate: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
