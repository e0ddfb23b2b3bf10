"""Building blocks of the HTML report's sections: templates and inline SVG charts."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from validation.report import summary


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        title: its heading.
        body: its HTML; all text from records is escaped.
        anchors: anchors of `summary.Row` that the body defines, so that the overview can link to them.
        style: CSS that the body needs in addition to report.css.
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
    """Render a template of this package; values are escaped unless they are Markup."""
    return Markup(_templates().get_template(template).render(values))


def source(name: str) -> str:
    """The text of a CSS or JS file of this package."""
    loader = _templates().loader
    assert loader is not None
    return loader.get_source(_templates(), name)[0]


def _breakable(text: str) -> Markup:
    """A name that may break after its underscores in a narrow column."""
    return Markup("_<wbr>").join(text.split("_"))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About count round numbers from low to high, spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def histogram(percents: Sequence[float]) -> Markup:
    """An SVG histogram of percents of the arithmetic's allowance in steps of 5, with one bar for all above 100."""
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
    parts += [text(left + n * 5 * bar, base + 16, f"{25 * n}", "middle") for n in range(5)]
    parts.append(text(left + 20.5 * bar + gap, base + 16, ">100", "middle"))
    if most:
        parts.append(text(left - 6, top + 4, f"{most:,}", "end"))
    parts.append(text(left - 6, base, "0", "end"))
    label = (
        f"Histogram of the percent used of the arithmetic's allowance: {counts[20]:,} of {sum(counts):,} cases over 100"
    )
    return svg(width, height, label, parts)


def text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> str:
    """An SVG text element at (x, y); words are escaped."""
    return str(
        Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, words)
    )


def svg(width: int, height: int, label: str, parts: Sequence[str], kind: str = "chart", data: str = "") -> Markup:
    """An SVG image of parts that are already markup; label is its accessible name."""
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"').format(kind, width, height, label)
    return head + Markup(data + ">" + "".join(parts) + "</svg>")
