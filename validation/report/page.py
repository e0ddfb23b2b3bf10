"""What the sections of the HTML report are made of: templates and inline SVG charts."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jinja2
from markupsafe import Markup, escape

from validation.report import summary


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        title: its heading.
        body: its HTML, everything that came from records escaped.
        anchors: anchors of `summary.Row` that the body defines, so that the overview can link to them.
        style: CSS that the body needs beside report.css.
    """

    title: str
    body: Markup
    anchors: frozenset[str] = frozenset()
    style: str = ""


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("validation.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        breakable=_breakable, counted=summary.counted, number=summary.number, percent=summary.percent
    )
    environment.globals.update(failure_text=summary.failure_text)
    return environment


def render(template: str, **values: object) -> Markup:
    """A template of this package with its values, which are escaped unless they are Markup."""
    return Markup(_templates().get_template(template).render(values))


def source(name: str) -> str:
    """The text of a CSS or JS file of this package."""
    loader = _templates().loader
    assert loader is not None
    return loader.get_source(_templates(), name)[0]


def _breakable(text: str) -> Markup:
    """A name that may break after its underscores where a column is narrow."""
    return Markup("_<wbr>").join(text.split("_"))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from low to high, about count of them, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def histogram(percents: Sequence[float]) -> Markup:
    """An SVG histogram of percents of the error budget in steps of 5, all above 100 in one bar of its own."""
    counts = [0] * 21
    for value in percents:
        if not math.isnan(value):
            counts[20 if value > 100 else min(19, max(0, int(value // 5)))] += 1
    width, height, left, base, gap = 440, 150, 40, 122, 26
    bar, top = (width - left - gap - 12) / 21, 12
    most = max(counts)
    parts = []
    for n, count in enumerate(counts):
        x = left + n * bar + (gap if n == 20 else 0)
        size = (base - top) * count / most if most else 0
        name = "over 100 %" if n == 20 else f"{5 * n} to {5 * n + 5} %"
        kind = "bar over" if n == 20 else "bar"
        if count:
            parts.append(
                f'<rect class="{kind}" x="{x + 0.5:.1f}" y="{base - max(size, 1):.1f}" width="{bar - 1:.1f}"'
                f' height="{max(size, 1):.1f}"><title>{name}: {summary.counted(count, "case")}</title></rect>'
            )
    parts.append(f'<line class="axis" x1="{left}" x2="{width - 4}" y1="{base}" y2="{base}"/>')
    parts += [_text(left + n * 5 * bar, base + 16, f"{25 * n}", "middle") for n in range(5)]
    parts.append(_text(left + 20.5 * bar + gap, base + 16, ">100", "middle"))
    if most:
        parts.append(_text(left - 6, top + 4, f"{most:,}", "end"))
    parts.append(_text(left - 6, base, "0", "end"))
    label = f"Histogram of the percent of the error budget used: {counts[20]:,} of {sum(counts):,} cases over 100"
    return _svg(width, height, label, parts)


def curve(
    values: Sequence[float],
    *,
    label: str,
    floors: Mapping[str, float],
    marked: int | None = None,
    axis: str = "frame",
) -> Markup:
    """An SVG curve over frames, or over what ``axis`` names.

    Infinity is drawn in a strip of its own above the plot, and what is no number as a cross at its foot:
    neither is put at a height that it does not have.

    Args:
        values: one a frame. A curve over frames has a cursor, which the player moves.
        label: what they are, with the unit.
        floors: horizontal lines by name.
        marked: a frame to mark, such as the worst.
    """
    axis = escape(axis)
    finite = [value for value in values if math.isfinite(value)]
    has_infinity = math.inf in values
    low = min([*finite, *floors.values()], default=0.0)
    high = max([*finite, *floors.values()], default=1.0)
    pad = 0.08 * (high - low)
    # A constant runs along the top: there is nothing above it, and an SSIM of 1 has no room there.
    low, high = (low - pad, high + pad) if pad else (low - max(abs(low) * 0.01, 1e-3), high)
    width, height, left, right, top, base = 520, 210, 58, 10, 44 if has_infinity else 14, 178
    step = (width - left - right - 12) / max(len(values) - 1, 1)

    def x(frame: float) -> float:
        return left + 6 + frame * step

    def y(value: float) -> float:
        return base - (base - top) * (value - low) / (high - low)

    parts = []
    if finite or floors:
        marks = ticks(low, high, 5)
        digits = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9)) if len(marks) > 1 else 4
        for mark in marks:
            parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
            parts.append(_text(left - 6, y(mark) + 4, f"{mark:.{digits}f}", "end"))
    if has_infinity:
        parts.append(_text(left - 6, 22, "inf", "end"))
        parts.append(f'<line class="break" x1="{left}" x2="{width - right}" y1="32" y2="32"/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
    frames = sorted({round(tick) for tick in ticks(0, max(len(values) - 1, 1), 6)})
    parts += [_text(x(frame), base + 16, str(frame), "middle") for frame in frames if frame < len(values)]
    parts.append(_text(width - right, base + 30, axis, "end"))
    for name, floor in floors.items():
        parts.append(f'<line class="floor" x1="{left}" x2="{width - right}" y1="{y(floor):.1f}" y2="{y(floor):.1f}"/>')
        parts.append(_text(width - right, y(floor) - 4, f"{name} {summary.number(floor)}", "end", "floor-name"))
    runs: list[list[str]] = [[]]
    for frame, value in enumerate(values):
        if math.isfinite(value):
            runs[-1].append(f"{x(frame):.1f},{y(value):.1f}")
        elif runs[-1]:
            runs.append([])
    parts += [f'<polyline class="line" points="{" ".join(points)}"/>' for points in runs if len(points) > 1]
    for frame, value in enumerate(values):
        title = f"<title>{axis} {frame}: {summary.number(value, 5)}</title>"
        if math.isnan(value) or value == -math.inf:
            cross = f"M{x(frame) - 3:.1f},{base - 6}l6,6m0,-6l-6,6"
            parts.append(f'<path class="no-number" d="{cross}">{title}</path>')
        else:
            kind = "point worst" if frame == marked else "point"
            at = 18.0 if value == math.inf else y(value)
            radius = 4 if frame == marked else 2
            parts.append(f'<circle class="{kind}" cx="{x(frame):.1f}" cy="{at:.1f}" r="{radius}">{title}</circle>')
    if axis != "frame":
        return _svg(width, height, label, parts, "curve")
    parts.append(f'<line class="cursor" y1="8" y2="{base}" x1="{x(marked or 0):.1f}" x2="{x(marked or 0):.1f}"/>')
    return _svg(width, height, label, parts, "curve", f' data-x="{x(0):.2f}" data-step="{step:.4f}"')


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return str(
        Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)
    )


def _svg(width: int, height: int, label: str, parts: Sequence[str], kind: str = "chart", data: str = "") -> Markup:
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"').format(kind, width, height, label)
    return head + Markup(data + ">" + "".join(parts) + "</svg>")
