"""Inline SVG figures of lines over frames, steps or places, with bands, floors, and a linear or logarithmic height."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from markupsafe import Markup, escape

from validation.report import page, summary

Values = Sequence[float]

WIDTH, HEIGHT, LEFT, RIGHT, BASE = 520, 210, 58, 10, 178
DECADES = 1.2  # a wider logarithmic range is marked at powers of ten and their multiples by 2 and 5


class _Scale:
    """The vertical scale of a plot.

    Attributes:
        marks: values to mark, with their labels.
    """

    def __init__(self, values: Iterable[float], top: float, *, log: bool) -> None:
        self.log, self.top = log, top
        drawn = [value for value in values if self.has(value)]
        low, high = min(drawn, default=1.0), max(drawn, default=1.0)
        if log and high / low > 10**DECADES:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 3 else (1,)
            ticks = [factor * 10.0**n for n in powers for factor in factors]
            self.marks = [(tick, summary.number(tick)) for tick in ticks]
        self._low, self._high = self._widened(*(math.log10(v) if log else v for v in (low, high)))
        if not log or high / low <= 10**DECADES:
            # In a logarithmic plot that spans less, round numbers read better than powers.
            ends = [10**v if log else v for v in (self._low, self._high)]
            ticks = page.ticks(ends[0], ends[1], 5)
            digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 4
            plain = digits <= 4
            self.marks = [(t, f"{t:.{digits}f}" if plain else summary.number(t)) for t in ticks]
        self.marks = [(tick, words) for tick, words in self.marks if top <= self.y(tick) <= BASE] if drawn else []

    def _widened(self, low: float, high: float) -> tuple[float, float]:
        pad = 0.08 * (high - low)
        if pad:
            return low - pad, high + pad
        # A constant runs along the top: there is nothing above it, and an SSIM of 1 has no room there.
        return (low - 0.05, high + 0.05) if self.log else (low - max(abs(low) * 0.01, 1e-3), high)

    def has(self, value: float) -> bool:
        """Whether a value can be drawn: finite, and positive in a logarithmic plot."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def y(self, value: float) -> float:
        """The y coordinate of a value, in SVG units from the top."""
        return BASE - (BASE - self.top) * ((math.log10(value) if self.log else value) - self._low) / (
            self._high - self._low
        )


def figure(
    title: str,
    lines: Mapping[str, Values],
    *,
    note: str = "",
    bands: Mapping[str, tuple[Values, Values]] | None = None,
    floors: Mapping[str, float] | None = None,
    marked: Collection[int] = (),
    axis: str = "frame",
    at: Sequence[float] | None = None,
    names: Sequence[str] = (),
    ticks: Mapping[int, str] | None = None,
    log: bool = False,
    width: int = WIDTH,
) -> Markup:
    """A figure: the plot, a legend if it has several lines, and a caption.

    Infinity is drawn in its own strip above the plot, and a value without a height (NaN; zero in a logarithmic plot)
    as a cross at the bottom: neither is drawn at a height that it does not have. A plot over frames has a cursor,
    which the player moves.

    Args:
        title: what is drawn, with the unit.
        lines: values by name; ``reference``, ``candidate`` and ``legal rounding`` have colours.
        note: follows the title in the caption.
        bands: least and greatest values, by name.
        floors: horizontal lines by name.
        marked: indices of points to mark, such as the worst frame, on the candidate's line or the only one.
        axis: what the points are, such as frames.
        at: their x values; 0, 1, 2, ... by default.
        names: names of the points; by default made from ``axis`` and ``at``.
        ticks: labels below some points; by default numbers from ``at``.
        log: whether the vertical scale is logarithmic.
        width: in pixels.
    """
    bands, floors = bands or {}, floors or {}
    svg = _plot(title, lines, bands, floors, marked, axis, at, names, ticks or {}, log=log, width=width)
    keys = [Markup('<span class="key {}">{}</span>').format(_kind(name), name) for name in lines if len(lines) > 1]
    keys += [Markup('<span class="key band {}">{}</span>').format(_kind(name), name) for name in bands]
    legend = Markup('<span class="legend">{}</span> ').format(Markup(" ").join(keys)) if keys else ""
    caption = f"{title}. {note}".strip()
    return Markup("<figure>{}<figcaption>{}{}</figcaption></figure>").format(svg, legend, caption)


def _kind(name: str) -> str:
    return name.split()[0]


def _plot(
    title: str,
    lines: Mapping[str, Values],
    bands: Mapping[str, tuple[Values, Values]],
    floors: Mapping[str, float],
    marked: Collection[int],
    axis: str,
    at: Sequence[float] | None,
    names: Sequence[str],
    ticks: Mapping[int, str],
    *,
    log: bool,
    width: int,
) -> Markup:
    edges = [edge for band in bands.values() for edge in band]
    count = max(map(len, [*lines.values(), *edges]), default=0)
    at = range(count) if at is None else at
    has_infinity = any(math.inf in values for values in lines.values())
    drawn = [*lines.values(), *edges, [*floors.values()]]
    scale = _Scale((v for values in drawn for v in values), 44 if has_infinity else 14, log=log)
    first, last = (at[0], at[-1]) if count else (0.0, 0.0)
    unit = (width - LEFT - RIGHT - 12) / ((last - first) or 1)
    xs = [LEFT + 6 + (value - first) * unit for value in at]

    parts = []
    for mark, words in scale.marks:
        y = scale.y(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(page.text(LEFT - 6, y + 4, words, "end"))
    if has_infinity:
        parts.append(page.text(LEFT - 6, 22, "inf", "end"))
        parts.append(f'<line class="break" x1="{LEFT}" x2="{width - RIGHT}" y1="32" y2="32"/>')
    for name, (low, high) in bands.items():
        inside = [n for n in range(min(len(low), len(high))) if scale.has(low[n]) and scale.has(high[n])]
        outline = [(xs[n], scale.y(low[n])) for n in inside] + [(xs[n], scale.y(high[n])) for n in reversed(inside)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
        parts.append(f'<polygon class="band {_kind(name)}" points="{points}"/>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{BASE}" y2="{BASE}"/>')
    if count:
        numbers = [] if ticks else sorted({round(tick) for tick in page.ticks(first, max(last, first + 1), 6)})
        parts += [page.text(LEFT + 6 + (n - first) * unit, BASE + 16, str(n), "middle") for n in numbers if n <= last]
        parts += [page.text(xs[n], BASE + 16, words, "start") for n, words in ticks.items()]
    parts.append(page.text(width - RIGHT, BASE + 30, axis, "end"))
    for name, floor in floors.items():
        y = scale.y(floor)
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(page.text(width - RIGHT, y - 4, f"{name} {summary.number(floor)}", "end", "floor-name"))
    for name, values in lines.items():
        parts += _line(name, values, xs, scale)
        here = marked if name == "candidate" or len(lines) == 1 else ()
        for n, value in enumerate(values):
            point = names[n] if names else f"{axis} {summary.number(at[n])}"
            title_of = escape(f"{point}: {f'{name} ' if len(lines) > 1 else ''}{summary.number(value, 5)}")
            parts.append(_point(_kind(name), value, xs[n], scale, f"<title>{title_of}</title>", worst=n in here))
    data = ""
    if axis == "frame":
        x = xs[min(marked)] if marked else LEFT + 6
        parts.append(f'<line class="cursor" y1="8" y2="{BASE}" x1="{x:.1f}" x2="{x:.1f}"/>')
        data = f' data-x="{LEFT + 6:.2f}" data-step="{unit:.4f}"'
    return page.svg(width, HEIGHT, title, parts, "curve" if width == WIDTH else "curve wide", data)


def _line(name: str, values: Values, xs: Sequence[float], scale: _Scale) -> list[str]:
    """Polylines through the values that have a height, broken at those that have none."""
    runs: list[list[str]] = [[]]
    for x, value in zip(xs, values, strict=False):
        if scale.has(value):
            runs[-1].append(f"{x:.1f},{scale.y(value):.1f}")
        elif runs[-1]:
            runs.append([])
    return [f'<polyline class="line {_kind(name)}" points="{" ".join(run)}"/>' for run in runs if len(run) > 1]


def _point(kind: str, value: float, x: float, scale: _Scale, title: str, *, worst: bool) -> str:
    if value != math.inf and not scale.has(value):
        return f'<path class="no-number" d="M{x - 3:.1f},{BASE - 6}l6,6m0,-6l-6,6">{title}</path>'
    y = 18.0 if value == math.inf else scale.y(value)
    mark, radius = (" worst", 4) if worst else ("", 2)
    return f'<circle class="point {kind}{mark}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'
