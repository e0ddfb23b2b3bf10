"""``validate repro``, ``compare``, ``diff`` and ``report``: repeat, compare or show kept results."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from validation.commands import FAILED, PASSED, Command, exit_status, progress
from validation.errors import UsageError
from validation.options import DEFAULT_OPS

if TYPE_CHECKING:
    from validation.cases.case import Case


def _repro(options: argparse.Namespace) -> int:
    from validation.device import select
    from validation.executor import limit_of, load
    from validation.ops import check_op_name
    from validation.parity.one_case import check_fits, judge_case
    from validation.report.terminal import print_text

    kept = [case_and_ops(text) for text in options.case]
    limit = limit_of(options.case_seconds)
    device = select(options.gpu, options.compiled, options.races)
    for case, _ in kept:
        check_op_name(case.op)
        if device.bfloat16_problems and any(spec.dtype == "bfloat16" for spec in case.tensors.values()):
            raise UsageError(f"bfloat16 cannot be judged: {'; '.join(device.bfloat16_problems)}")
        check_fits(case, device.torch)
    failed = next((ops for _, ops in kept if ops), "")
    executor = load(options.ops or failed or DEFAULT_OPS, device, isolate=options.isolate, limit=limit)
    records = [judge_case(case, executor) for case, _ in kept]
    executor.close()
    for record in records:
        tier = f" ({record.tier})" * (record.tier is not None)
        print_text(record.message or f"{record.subject}  {record.op_set}  {record.status}{tier}\n{record.reason}")
    return exit_status(record.status for record in records)


def case_and_ops(text: str) -> "tuple[Case, str]":
    """The case of a JSON text or of a file that holds it, and the op set that the file names; "" if it names none."""
    from validation.cases.case import Case
    from validation.parity.regressions import read_failure

    return (Case.from_json(text), "") if text.lstrip().startswith("{") else read_failure(Path(text))


def _compare(options: argparse.Namespace) -> int:
    from validation.files import require_writable, write_text
    from validation.kept.floors import Floors
    from validation.kept.pairs import compare, lines, to_json
    from validation.kept.records import keep
    from validation.record import Environment, Run
    from validation.report.html import write_report

    if options.out is not None:
        require_writable(options.out)
        if (options.out / "records.jsonl").exists():
            raise UsageError(f"--out: {options.out} holds a run already, expected a new or empty folder")
    candidate = Path(options.candidate)
    floors = Floors(options.floors, options.second_reference)
    results, left_out = compare(Path(options.reference), candidate, floors, progress)
    status = exit_status(result.verdict.status for result in results)
    if options.json is not None:
        write_text(options.json, to_json(results, left_out, status))
    print(*lines(results, left_out), sep="\n")
    if options.out is not None:
        run = Run(options.out, Environment.capture(device="none", seed=0, profile="none"))
        keep(run, results, candidate, floors)
        print(f"report: {write_report(run.folder)}")
    return status


def _diff(options: argparse.Namespace) -> int:
    from validation.diff import diff
    from validation.files import write_text

    found = diff(Path(options.old_run), Path(options.new_run))
    if options.json is not None:
        write_text(options.json, found.to_json())
    print(*found.lines(), sep="\n")
    return FAILED if found.differences else PASSED


def _report(options: argparse.Namespace) -> int:
    from validation.record import read_run
    from validation.report.html import write_report
    from validation.report.terminal import print_table
    from validation.report.unfinished import left_of
    from validation.run_plan import RunState

    folder = Path(options.run_dir)
    _, records = read_run(folder)
    print_table(records, report=write_report(folder), left=left_of(RunState.read(folder), records))
    return PASSED


# `validation.kept.kinds.SUFFIXES`, whose module imports numpy and torch.
_COMPARED = "videos .npz, .mkv, .mp4, images .png, arrays .npz, .npy, .safetensors, .pt, meshes .glb, .obj, .stl"

COMMANDS = (
    Command(
        "compare",
        "judge kept files of one run against another's",
        "Judges videos, images, arrays (such as latents) and meshes of CANDIDATE against those of REFERENCE: two\n"
        "files, or two folders whose files are matched by name. What is wrong is named: another order of frames,\n"
        "frozen or uniform frames, flips, swapped channels, other levels, a part that differs alone. How far apart\n"
        "right files may be depends on what made them: without floors of their own, files that differ are not judged\n"
        "(exit status 3). A file that is missing or damaged, and another count, size or rate, is a failure; nothing\n"
        "is trimmed.",
        _compare,
        (
            ("REFERENCE", f"a file or a folder of files: {_COMPARED}"),
            ("CANDIDATE", "the same of the other run"),
        ),
        samples=True,
    ),
    Command(
        "diff",
        "say what changed from one run folder to another",
        "Compares two run folders record by record: which verdicts, tiers, numbers, series and bits of artifacts\n"
        "changed, and which records are gone or new. Wall-clock seconds and peak memory are left out. Another\n"
        "environment (commit, versions, device) is named, but is no change by itself.",
        _diff,
        (
            ("OLD_RUN", "a run folder, such as runs/20260101-120000"),
            ("NEW_RUN", "the run folder to hold against it"),
        ),
        "exit status: 0 nothing changed, 1 something changed, 2 usage error\n",
    ),
    Command(
        "repro",
        "judge one case again",
        "Judges a case again: the JSON text of a failure's last line, or a file that holds it. Several are judged one\n"
        "after another in one process: a failure's last line has two where the op keeps something between calls.",
        _repro,
        (("CASE ...", "JSON text of a case, or the path of a file that holds it"),),
    ),
    Command(
        "report",
        "write report.html of a run folder",
        "Writes report.html of a run folder again; of a run that was cut it says what was judged and what was not.",
        _report,
        (("RUN_DIR", "such as runs/20260101-120000"),),
        "exit status: 0 written, whatever the verdicts, 2 usage error\n",
    ),
)
