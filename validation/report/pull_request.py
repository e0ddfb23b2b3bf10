"""A run in a few lines of Markdown, to paste into a pull request."""

from collections.abc import Sequence

from validation.record import Environment, Level, Record
from validation.report import summary
from validation.report.unfinished import NOTHING, Left
from validation.verdict import Tier


def pull_request_text(environment: Environment, records: Sequence[Record], left: Left = NOTHING) -> str:
    """The verdict, a line for each kind of result, and the command that repeats the run."""
    verdict, sentence = summary.headline(records, left)
    rows = summary.rows(records, left)
    op_sets = ", ".join(sorted({row.op_set for row in rows if row.op_set}))
    lines = [f"**{verdict}**: {op_sets + ': ' if op_sets else ''}{sentence}", ""]
    passed = [row for row in rows if row.level is Level.OP and row.verdict == "PASSED"]
    if passed:
        cases = sum(len(row.records) for row in passed)
        tier = Tier.loosest(row.tier for row in passed)
        lines.append(
            f"- {summary.counted(len(passed), 'op')} passed in {summary.counted(cases, 'case')}: "
            f"{tier or 'no tier'}, at most {summary.percent(summary.worst(_all(passed), 'arithmetic_percent'))} % of "
            "the arithmetic's allowance"
        )
    for row in rows:
        if row.level is Level.MODEL:
            lines += [f"- {row.subject}, {record.check}: {_told(record)}" for record in row.records]
        elif row.level is Level.SAMPLE:
            count = summary.counted(len(row.records), "sample")
            worst = min(row.records, key=_badness)
            at = " ".join(str(worst.case[key]) for key in ("prompt_name", "seed") if key in worst.case)
            lines.append(f"- {row.subject}, {count}, the worst ({at}): {_told(worst)}")
        elif row.verdict in ("FAILED", "INCONCLUSIVE"):
            worst = next((r for r in [*row.records, *row.checks] if r.status.failed), row.records[0])
            lines.append(f"- {row.subject}: {row.failed:,} of {len(row.records):,} failed: {_told(worst)}")
    versions = (("torch", environment.torch), ("triton", environment.triton), ("diffusers", environment.diffusers))
    about = [environment.device, *(f"{name} {version}" for name, version in versions if version)]
    about += [f"commit {environment.commit}"] * bool(environment.commit)
    return "\n".join([*lines, "", f"{', '.join(about)}: `{environment.command}`"])


def _all(rows: Sequence[summary.Row]) -> list[Record]:
    return [record for row in rows for record in row.records]


def _told(record: Record) -> str:
    return f"{record.status}{f' ({record.tier})' if record.tier else ''}: {record.reason}"


def _badness(record: Record) -> tuple[bool, float]:
    """Sort key: failures first, then the least of the last rung's measures that share the unit of its first."""
    last = [measure for measure in record.measures if measure["rung"] == record.measures[-1]["rung"]]
    alike = [measure["name"] for measure in last if (measure["unit"], measure["better"]) == (last[0]["unit"], "high")]
    values = [value for name in alike for value in summary.numbers_of([record], name)]
    return not record.status.failed, min(values, default=0.0)
