"""Counts every arm at every workload, and writes what the repository keeps of it: ``python benchmarks/counters.py``.

``benchmarks/counters.json``, the counters that a test holds our kernels to; ``docs/figures/counters.svg``; and the
table in ``docs/counters.md``, of the first workload of each op and model. Prints where a counter of ours is worse than
the one that it replaces.
"""

import sys
from pathlib import Path

from validation.bench import counters, selection

ROOT = Path(__file__).parents[1]
KEPT, PICTURE, PAGE = (
    ROOT / name for name in ("benchmarks/counters.json", "docs/figures/counters.svg", "docs/counters.md")
)
BEGIN, END = "<!-- counted: python benchmarks/counters.py -->\n", "<!-- end -->\n"


def main() -> None:
    """Count and write."""
    rows = counters.count(selection.chosen(), progress=lambda text: print(text, file=sys.stderr))
    if KEPT.exists():
        print(*counters.regressions(rows, KEPT.read_text()), sep="\n")
    KEPT.write_text(counters.kept(rows))
    PICTURE.write_text(counters.picture(rows))
    first = {(row.workload.op, row.workload.model): row for row in reversed(rows)}
    shown = [row for row in rows if first[row.workload.op, row.workload.model] is row]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n```\n{counters.table(shown)}\n```\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
