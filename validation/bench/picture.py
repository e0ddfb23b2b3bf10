"""The benchmarks' pictures, as SVG files: share of the roof by op and shape, and steps by arm."""

from collections.abc import Sequence

from markupsafe import Markup

COLOURS = ("#0b5fa5", "#8a8f98", "#c2571a", "#b8a1d9", "#2a8c82", "#b3261e", "#a07d00")
LABELS, PLOT, ROW, HEAD, FULL = 560, 520, 18, 64, 1.1
STYLE = """text{font:11px sans-serif;fill:#222}.op{font-weight:bold}.axis{fill:#666}.grid{stroke:#ddd}
.goal{stroke:#222;stroke-width:2}.span{stroke:#c2571a;stroke-width:3}.title{font-size:14px;font-weight:bold}"""


def share_of_roof(bars: Sequence[tuple[str, str, dict[str, float], float | None]], first: str, title: str) -> Markup:
    """An SVG file with a row for each workload: one arm as a bar, the others as dots, the goal as a tick.

    Args:
        bars: op, workload, share by arm (0 to 1, cut at 1.1), and the goal, if there is one.
        first: the arm that is drawn as a bar.
        title: of what, where and when.
    """
    names = list(dict.fromkeys([first, *(name for _, _, shares, _ in bars for name in shares)]))
    colour = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}
    lines, y, op_before = [], HEAD, ""
    for op, workload, shares, goal in bars:
        if op != op_before:
            lines.append(Markup('<text class="op" x="8" y="{}">{}</text>').format(y + 13, op))
            op_before, y = op, y + ROW
        lines.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LABELS - 8, y + 13, workload))
        # The bar is drawn first, so that the dots lie on it.
        for name, share in sorted(shares.items(), key=lambda arm: arm[0] != first):
            tip = Markup("<title>{}: {:.0%}</title>").format(name, share)
            if name == first:
                shape = Markup('<rect x="{}" y="{}" width="{:.1f}" height="12" fill="{}">{}</rect>')
                lines.append(shape.format(LABELS, y + 3, _x(share) - LABELS, colour[name], tip))
            else:
                shape = Markup('<circle cx="{:.1f}" cy="{}" r="4" fill="{}" stroke="white">{}</circle>')
                lines.append(shape.format(_x(share), y + 9, colour[name], tip))
        if goal is not None:
            goal_at = Markup('<line class="goal" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>')
            lines.append(goal_at.format(_x(goal), y + 1, y + 17))
        y += ROW
    back = []
    for percent in range(0, 101, 20):
        at = _x(percent / 100)
        grid = Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>')
        back.append(grid.format(at, HEAD, y))
        label = Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{} %</text>')
        back.append(label.format(at, y + 14, percent))
    x = 8.0
    for name in names:
        mark = '<rect x="{}" y="38" width="12" height="12" fill="{}"/>' if name == first else ""
        mark = mark or '<circle cx="{}" cy="44" r="5" fill="{}"/>'
        back.append(Markup(mark).format(x + (0 if name == first else 6), colour[name]))
        back.append(Markup('<text x="{}" y="48">{}</text>').format(x + 16, name))
        x += 32 + 7 * len(name)
    if any(goal is not None for _, _, _, goal in bars):
        mark = '<line class="goal" x1="{0}" x2="{0}" y1="37" y2="51"/><text x="{1}" y="48">goal</text>'
        back.append(Markup(mark).format(x, x + 8))
    return _sheet(LABELS + PLOT + 12, y + 24, title, [*back, *lines])


def _x(share: float) -> float:
    return LABELS + PLOT * min(max(share, 0.0), FULL) / FULL


def step_times(bars: Sequence[tuple[str, float, float, float, str]], goal: float, subtitle: str) -> Markup:
    """An SVG file with a row for each arm: its time per step over the first arm's as a bar, the interval as a line.

    Args:
        bars: name, median ratio, its interval's ends, and the words beside it.
        goal: the ratio to reach.
        subtitle: what was measured, where and when.
    """
    most = max([1.0, *(high for _, _, _, high, _ in bars)]) * 1.05
    left, lines, y = 120, [], HEAD
    for name, median, low, high, words in bars:
        lines.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 8, y + 13, name))
        title = Markup("<title>{}: {:.3f} ({:.3f} to {:.3f})</title>").format(name, median, low, high)
        bar = Markup('<rect x="{}" y="{}" width="{:.1f}" height="12" fill="{}">{}</rect>')
        lines.append(bar.format(left, y + 3, PLOT * median / most, COLOURS[0], title))
        ends = (left + PLOT * low / most, left + PLOT * high / most)
        span = Markup('<line class="span" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>')
        lines.append(span.format(*ends, y + 9, y + 9))
        lines.append(Markup('<text x="{}" y="{}">{:.3f}, {}</text>').format(left + PLOT + 8, y + 13, median, words))
        y += ROW
    goal_at = Markup('<line class="goal" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"><title>goal</title></line>')
    lines.append(goal_at.format(left + PLOT * goal / most, HEAD - 4, y + 2))
    under = Markup('<text class="axis" x="8" y="40">{}; bar: median, line: interval, tick: goal</text>')
    heading = "Time a step over that of the path before"
    return _sheet(left + PLOT + 320, y + 12, heading, [under.format(subtitle), *lines])


def _sheet(width: int, height: int, title: str, lines: Sequence[Markup]) -> Markup:
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}">')
    style = Markup('<style>{}</style><rect width="100%" height="100%" fill="white"/>').format(Markup(STYLE))
    heading = Markup('<text class="title" x="8" y="22">{}</text>').format(title)
    return head.format(width, height) + style + heading + Markup("").join(lines) + Markup("</svg>\n")
