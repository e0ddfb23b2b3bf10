"""The ``validate`` command."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from validation.errors import UsageError
from validation.shape_options import ShapeOptions, add_shape_options

PASSED, FAILED, USAGE, INCONCLUSIVE = 0, 1, 2, 3

DESCRIPTION = """\
Is a fused op safe to land? One rule: the fused path may be no further from the truth than the path that it
replaces, measured, on inputs chosen to hurt.

  validate run                                the main job: parity, then quality, then a report to open
  validate parity --op layer_norm_scale_shift one op, over shapes, layouts, dtypes and value regimes
  validate parity --ops my_kernels.py         your own ops: a file or module that defines some of them
  validate quality --model helios             a whole sampled video, reference against fused
  validate faults                             planted bugs, each of which the suite must catch
  validate bench ops --gpu                    how fast each op is, beside the copy, the eager chain and others
  validate bench denoise --model helios --gpu how fast a whole denoiser is with them, beside each arm's drift
  validate compare REFERENCE CANDIDATE        two kept videos of two runs
  validate diff OLD_RUN NEW_RUN               two run folders: which verdicts, tiers, numbers and bits changed
  validate repro '{"op": ...}'                one case again, from a failure's last line
"""

EPILOG = """\
exit status: 0 all passed, 1 a verdict failed, 2 usage error, 3 inconclusive, 130 interrupted
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="validate", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str, description: str, epilog: str = EPILOG) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help_text,
            description=description,
            epilog=epilog,
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
        "Samples a model from the same seeds with reference ops and with the candidate's mounted on its sites, and\n"
        "compares: at each site along the truth's own trajectory; the latents' distance to the truth, beside legal\n"
        "replays of every rounding (the band, kept for the next run); the decoded frames in memory.",
    )
    faults = command(
        "faults",
        "plant bugs in the ops, and show that the suite catches each",
        "Judges wrong ops, each with one known bug, and prints the kill matrix: which check caught which bug, in\n"
        "which value regimes. Fails if a bug survives, or if no check that names it caught it.",
    )
    compare = command(
        "compare",
        "judge one kept video against another",
        "Judges the frames of one file against those of another, as a run does its arms'. A file that is missing or\n"
        "damaged, and another count, size or rate, is a failure; nothing is trimmed.",
    )
    diff = command(
        "diff",
        "say what changed from one run folder to another",
        "Compares two run folders record by record: which verdicts, tiers, numbers, series and bits of artifacts\n"
        "changed, and which records are gone or new. Wall-clock seconds and peak memory are left out. Another\n"
        "environment (commit, versions, device) is named, but is no change by itself.",
        "exit status: 0 nothing changed, 1 something changed, 2 usage error\n",
    )
    repro = command(
        "repro",
        "judge one case again",
        "Judges one case again: the JSON text of a failure's last line, or a file that holds it.",
    )
    bench = command("bench", "time ops", "Timings; they count on a GPU only.")
    benches = bench.add_subparsers(dest="bench", required=True, metavar="WHAT")
    bench_ops = benches.add_parser(
        "ops",
        help="every op at every workload of the real models",
        description="Times each op at each site of Helios and Hunyuan3D-2, and at shapes that neither has, beside the\n"
        "eager reference, torch.compile of it, PyTorch's norms and other libraries' kernels, and a copy of as many\n"
        "bytes. Results are written after each workload, and --merge makes one of those of several calls. Without\n"
        "--gpu: the bytes that must move and what the compiler made of the kernels; nothing is timed. Exit status 1\n"
        "if an op of ours fails; to fall short of a goal is no failure.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench_ops.add_argument("--gpu", action="store_true", help="time on the GPU; a usage error where there is none")
    bench_ops.add_argument("--op", action="append", default=[], metavar="NAME", help="this op only; may be repeated")
    bench_ops.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="workloads of helios, of hunyuan3d, or shapes that neither has; may be repeated (default: all)",
    )
    bench_ops.add_argument(
        "--arm", action="append", default=[], metavar="NAME", help="time this beside ours and a copy; may be repeated"
    )
    bench_ops.add_argument("--rounds", type=int, default=9, metavar="N", help="samples of each (default: 9)")
    bench_ops.add_argument(
        "--merge", type=Path, nargs="+", metavar="FILE", help="time nothing: one table and picture of earlier results"
    )
    bench_ops.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="folder of the JSON and the picture"
    )
    denoise = benches.add_parser(
        "denoise",
        help="a whole denoiser's step, before the fusions and after",
        description="Times a step of Helios or Hunyuan3D-2 at full size, random weights, in arms that take turns: the\n"
        "path before the fusions, the sites of the change upstream, all sites, compact modulation, CUDA graphs,\n"
        "torch.compile; beside each its drift verdict, launches, memory and the bytes that it must move. Without\n"
        "--gpu: the bytes alone; nothing is timed. Exit status 1 if an arm of the op set fails, its drift included.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    denoise.add_argument("--model", required=True, metavar="NAME", help="helios or hunyuan3d")
    denoise.add_argument("--gpu", action="store_true", help="time on the GPU; a usage error where there is none")
    denoise.add_argument(
        "--tiny",
        action="store_true",
        help="a tiny size, which runs on the CPU too: a test of the harness, no measurement",
    )
    denoise.add_argument("--checkpoint", type=Path, metavar="DIR", help="weights (default: random ones)")
    denoise.add_argument(
        "--ops", metavar="MODULE_OR_FILE", default="fused_ops", help="op set to mount (default: fused_ops)"
    )
    denoise.add_argument(
        "--arm", action="append", default=[], metavar="NAME", help="beside the first, this arm only; may be repeated"
    )
    denoise.add_argument("--steps", type=int, default=4, metavar="N", help="timed steps of a visit (default: 4)")
    denoise.add_argument(
        "--rounds", type=int, default=6, metavar="N", help="of two visits of each arm; an interval needs 6 (default: 6)"
    )
    denoise.add_argument(
        "--decodes", type=int, choices=(0, 1, 2), default=2, help="timed decodes, for end to end (default: 2)"
    )
    denoise.add_argument(
        "--drift",
        choices=("embedded", "model", "none"),
        help="measure it on the embedded checkpoint, or on the model that is timed (default: embedded; model if tiny)",
    )
    denoise.add_argument("--replays", type=int, default=8, metavar="N", help="legal replays of each kind (default: 8)")
    denoise.add_argument("--cache", type=Path, metavar="DIR", help="where the bands are kept")
    denoise.add_argument("--profile", action="store_true", help="write a table of kernels by arm as well; needs --gpu")
    denoise.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="folder of the JSON and the picture"
    )
    report = command(
        "report",
        "write report.html of a run folder",
        "Writes report.html of a run folder again.",
        "exit status: 0 written, whatever the verdicts, 2 usage error\n",
    )

    for sub in (run, parity, quality, repro):
        sub.add_argument(
            "--ops",
            metavar="MODULE_OR_FILE",
            default="fused_ops",
            help="op set to judge: an importable module, a .py file or an entry point's name (default: fused_ops; of "
            "repro, that of the failure in the file)",
        )
        sub.add_argument("--gpu", action="store_true", help="run on the GPU; a usage error where there is none")
    for sub in (run, parity, repro):
        sub.add_argument(
            "--isolate",
            action=argparse.BooleanOptionalAction,
            help="run candidates in a process of their own, which may hang or crash (default: all that are not ours)",
        )
        sub.add_argument(
            "--case-seconds", type=float, metavar="S", help="the most that a case may take there (default: 120)"
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
    for sub in (run, parity, quality):
        sub.add_argument(
            "--require",
            metavar="TIER",
            help="hold every op, and the drift, to bit-exact, lossless or close (default: lossless for fused_ops, "
            "close for others)",
        )
    for sub in (run, parity):
        sub.add_argument(
            "--xfail", type=Path, metavar="FILE", help="known failures: op[:status or corner][:dtype]  # reason"
        )
    faults.add_argument("--op", action="append", default=[], metavar="NAME", help="faults of this op; may be repeated")
    parity.add_argument("--op", action="append", default=[], metavar="NAME", help="judge this op only; may be repeated")
    for sub in (run, quality):
        sub.add_argument("--model", metavar="NAME", help="model to sample: helios, hunyuan3d (default: all)")
    quality.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint: Helios in diffusers' folder format, Hunyuan3D-2 in the official one",
    )
    quality.add_argument(
        "--sites", metavar="SITE[,SITE]", help="mount only these sites (default: every site whose op the set provides)"
    )
    quality.add_argument("--prompts", type=Path, metavar="FILE", help="JSON of what to sample (default: embedded)")
    for sub in (run, quality):
        sub.add_argument(
            "--replays",
            type=int,
            default=8,
            metavar="N",
            help="legal replays of each kind a prompt, for the band; 0: no drift, floors alone (default: %(default)s)",
        )
        sub.add_argument(
            "--cache", type=Path, metavar="DIR", help="where the band is kept (default: ~/.cache/fused-op-validation)"
        )
    shapes = quality.add_argument_group("with --model hunyuan3d")
    add_shape_options(shapes.add_argument)
    compare.add_argument("reference", type=Path, metavar="REFERENCE", help="a video: .npz or .mkv, or a lossy .mp4")
    compare.add_argument("candidate", type=Path, metavar="CANDIDATE", help="a video")
    compare.add_argument(
        "--floors", type=Path, metavar="FILE", help="of PSNR and SSIM, as fixtures/tolerances has them"
    )
    diff.add_argument("old", type=Path, metavar="OLD_RUN", help="a run folder, such as runs/20260101-120000")
    diff.add_argument("new", type=Path, metavar="NEW_RUN", help="the run folder to hold against it")
    diff.add_argument("--json", type=Path, metavar="FILE", help="write all differences as JSON as well")
    repro.add_argument("case", metavar="CASE", help="JSON text of a case, or the path of a file that holds it")
    repro.set_defaults(ops=None)  # that of the file, where it names one
    report.add_argument("folder", type=Path, metavar="RUN_DIR", help="such as runs/20260101-120000")
    return parser


def _progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _session_command(arguments: argparse.Namespace) -> int:
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
            case_seconds=getattr(arguments, "case_seconds", None),
            require=getattr(arguments, "require", None),
            xfail=getattr(arguments, "xfail", None),
            json=arguments.json,
            junit=arguments.junit,
            out=arguments.out,
            model=getattr(arguments, "model", None),
            checkpoint=getattr(arguments, "checkpoint", None),
            sites=tuple(sites.split(",")) if sites else None,
            prompts=getattr(arguments, "prompts", None),
            replays=getattr(arguments, "replays", 0),
            cache=getattr(arguments, "cache", None),
            shape=ShapeOptions.read(arguments) if arguments.command == "quality" else ShapeOptions(),
        )
    )
    if arguments.command in ("run", "quality"):
        from validation.quality import check_request

        check_request(session)
    _progress(f"{session.ops.name} on {session.device.name}, seed {session.options.seed}, to {session.run.folder}")
    if arguments.command in ("run", "parity"):
        if session.ops.missing and not session.options.names:
            _progress(f"{session.ops.name} does not provide: {', '.join(session.ops.missing)}")
        for _ in session.keep(session.sweep.of_ops(session.names, progress=_progress)):
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
    from validation.verdict import Status

    known = [Status(str(status)) for status in statuses]
    if all(status is Status.NOT_EXPRESSED for status in known) or any(status.failed for status in known):
        return FAILED
    return INCONCLUSIVE if Status.INCONCLUSIVE in known else PASSED


def _repro(arguments: argparse.Namespace) -> int:
    from validation.cases.case import Case
    from validation.device import select
    from validation.executor import limit_of, load
    from validation.ops import check_op_name
    from validation.parity.one_case import check_fits, judge_case
    from validation.parity.regressions import read_failure
    from validation.report.terminal import print_text
    from validation.session import DEFAULT_OPS

    text: str = arguments.case
    case, failed = (Case.from_json(text), "") if text.lstrip().startswith("{") else read_failure(Path(text))
    limit = limit_of(arguments.case_seconds)
    device = select(arguments.gpu)
    check_op_name(case.op)
    if device.bfloat16_problems and any(spec.dtype == "bfloat16" for spec in case.tensors.values()):
        raise UsageError(f"bfloat16 cannot be judged: {'; '.join(device.bfloat16_problems)}")
    check_fits(case, device.torch)
    executor = load(arguments.ops or failed or DEFAULT_OPS, device, isolate=arguments.isolate, limit=limit)
    record = judge_case(case, executor)
    executor.close()
    passed = f"{record.subject}  {record.op_set}  {record.status} ({record.tier})\n{record.reason}"
    print_text(record.message or passed)
    return exit_status([record.status])


def _bench_ops(arguments: argparse.Namespace) -> int:
    from validation.device import select
    from validation.files import require_writable

    device = select(arguments.gpu)
    if arguments.rounds < 1:
        raise UsageError(f"--rounds: {arguments.rounds}, expected an integer >= 1")
    from validation.bench import ops, ops_results, selection
    from validation.bench.timing import GpuTimer

    found, names = selection.chosen(arguments.op, arguments.model), ops.chosen_arms(arguments.arm)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    if arguments.merge:
        rows, where = ops_results.read(arguments.merge)
        paths = ops_results.write(rows, where, arguments.out, stamp)
    elif not arguments.gpu:
        print(ops_results.without_gpu(found))
        return PASSED
    else:
        require_writable(arguments.out)
        timer = GpuTimer()
        rows, where = [], ops_results.about(timer, device.name)
        for row in ops.run(found, timer, whole=True, names=names, rounds=arguments.rounds, progress=_progress):
            rows.append(row)
            # After each: what was measured outlives a run that is cut short.
            paths = ops_results.write(rows, where, arguments.out, stamp)
    print(ops_results.table(rows))
    print("results:", *paths)
    return FAILED if any(row.failed for row in rows) else PASSED


def _bench_denoise(arguments: argparse.Namespace) -> int:
    import torch

    from validation.device import select
    from validation.files import require_writable
    from validation.ops import load_op_set

    for option, value, least in (("rounds", arguments.rounds, 1), ("steps", arguments.steps, 1)):
        if value < least:
            raise UsageError(f"--{option}: {value}, expected an integer >= {least}")
    if arguments.drift != "none" and arguments.replays < 4:
        raise UsageError(f"--replays: {arguments.replays}, expected at least 4 (--drift none leaves the drift out)")
    if arguments.profile and not arguments.gpu:
        raise UsageError("--profile: kernels are seen on a GPU only, expected --gpu as well")
    device = select(arguments.gpu)
    from validation.bench import denoise, denoise_report
    from validation.bench.denoise_results import Result

    ops = load_op_set(arguments.ops)
    if not (arguments.gpu or arguments.tiny):
        print(denoise_report.without_gpu(arguments.model, ops, arguments.checkpoint))
        return PASSED
    require_writable(arguments.out)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())

    def keep(result: Result) -> list[Path]:
        return denoise_report.write(result, device.name, arguments.out, stamp, profile=arguments.profile)

    try:
        result = denoise.benchmark(
            arguments.model,
            ops,
            device.torch,
            tiny=arguments.tiny,
            checkpoint=arguments.checkpoint,
            names=arguments.arm,
            steps=arguments.steps,
            rounds=arguments.rounds,
            decodes=arguments.decodes,
            drift=arguments.drift,
            replays=arguments.replays,
            cache=arguments.cache,
            keep=keep,
            progress=_progress,
        )
    except torch.OutOfMemoryError as error:
        said = next(iter(str(error).splitlines()), "")
        raise UsageError(f"--model {arguments.model}: the path before the fusions does not fit: {said}") from error
    print(denoise_report.table(result))
    print("results:", *keep(result))
    return FAILED if result.failed else PASSED


def _compare(arguments: argparse.Namespace) -> int:
    from validation.files import FIXTURES
    from validation.quality import read_floors
    from validation.video_files import judge_files

    floors = read_floors(arguments.floors or FIXTURES / "tolerances" / "helios.json")
    verdict = judge_files(arguments.reference, arguments.candidate, floors)
    print(f"{verdict.status}{f' ({verdict.tier})' if verdict.tier else ''}: {verdict.reason}")
    return exit_status([verdict.status])


def _diff(arguments: argparse.Namespace) -> int:
    from validation.diff import diff
    from validation.files import check_writable, write_text

    if arguments.json is not None:
        check_writable(arguments.json, "--json")
    found = diff(arguments.old, arguments.new)
    if arguments.json is not None:
        write_text(arguments.json, found.to_json())
    print(*found.lines(), sep="\n")
    return FAILED if found.differences else PASSED


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
    from validation.files import default_folder

    # Else Hypothesis makes a folder of its own wherever the command is called.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(default_folder() / "hypothesis"))
    # NumPy says so under the interpreter wherever a case holds NaN or inf on purpose.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(triton|numpy)\.")
    try:
        if arguments.command == "repro":
            return _repro(arguments)
        if arguments.command == "compare":
            return _compare(arguments)
        if arguments.command == "diff":
            return _diff(arguments)
        if arguments.command == "report":
            return _report(arguments)
        if arguments.command == "faults":
            return _faults(arguments)
        if arguments.command == "bench":
            return _bench_ops(arguments) if arguments.bench == "ops" else _bench_denoise(arguments)
        return _session_command(arguments)
    except UsageError as error:
        print(f"validate: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("validate: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
