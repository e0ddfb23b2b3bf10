"""``validate repro``, ``compare``, ``diff`` and ``report``: repeat, compare or show kept results."""

import argparse
from pathlib import Path

from validation.commands import FAILED, PASSED, Command, exit_status
from validation.errors import UsageError
from validation.options import DEFAULT_OPS


def _repro(options: argparse.Namespace) -> int:
    from validation.cases.case import Case
    from validation.device import select
    from validation.executor import limit_of, load
    from validation.ops import check_op_name
    from validation.parity.one_case import check_fits, judge_case
    from validation.parity.regressions import read_failure
    from validation.report.terminal import print_text

    text: str = options.case
    case, failed = (Case.from_json(text), "") if text.lstrip().startswith("{") else read_failure(Path(text))
    limit = limit_of(options.case_seconds)
    device = select(options.gpu)
    check_op_name(case.op)
    if device.bfloat16_problems and any(spec.dtype == "bfloat16" for spec in case.tensors.values()):
        raise UsageError(f"bfloat16 cannot be judged: {'; '.join(device.bfloat16_problems)}")
    check_fits(case, device.torch)
    executor = load(options.ops or failed or DEFAULT_OPS, device, isolate=options.isolate, limit=limit)
    record = judge_case(case, executor)
    executor.close()
    passed = f"{record.subject}  {record.op_set}  {record.status} ({record.tier})\n{record.reason}"
    print_text(record.message or passed)
    return exit_status([record.status])


def _compare(options: argparse.Namespace) -> int:
    from validation.files import FIXTURES
    from validation.samples.compare import judge_files

    bounds = options.floors or FIXTURES / "tolerances" / "helios.json"
    verdict = judge_files(Path(options.reference), Path(options.candidate), bounds)
    print(f"{verdict.status}{f' ({verdict.tier})' if verdict.tier else ''}: {verdict.reason}")
    return exit_status([verdict.status])


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


COMMANDS = (
    Command(
        "compare",
        "judge one kept video against another",
        "Judges the frames of one file against those of another, as a run does its arms'. A file that is missing or\n"
        "damaged, and another count, size or rate, is a failure; nothing is trimmed.",
        _compare,
        (("REFERENCE", "a video: .npz or .mkv, or a lossy .mp4"), ("CANDIDATE", "a video")),
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
        "Judges one case again: the JSON text of a failure's last line, or a file that holds it.",
        _repro,
        (("CASE", "JSON text of a case, or the path of a file that holds it"),),
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
