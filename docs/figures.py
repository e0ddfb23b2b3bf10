"""Draws the pictures of ``how-it-judges.md`` into ``figures/``: ``python docs/figures.py [RUN]``.

Budget, tiers and the one rule come from the judge's own functions, on cases of fixed seed. Teacher-forced drift and
bands come from the records of a run of a wrong op set, of which ``figures/run.json`` keeps what is drawn; with RUN,
the folder of such a run, that file is made again:

    validate quality --model helios --ops validation.models.helios.faults:n_minus_1_variance
"""

import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import reference_ops
from validation.cases.case import Case
from validation.cases.tensors import materialise
from validation.judge.expected import Target, expect
from validation.judge.stats import SYSTEMATIC
from validation.record import Level, read_run

FOLDER = Path(__file__).parent / "figures"
WIDTH, HEIGHT, LEFT, BASE, TOP = 720, 300, 64, 250, 20
BLUE, BROWN, RED, GREEN, GREY, SAND = "#2f6fbf", "#a5430f", "#c0182b", "#7fb69a", "#6b7280", "#d8c79e"
GOLD, VIOLET, GREEN_TEXT = "#b8860b", "#7c3aed", "#26734d"

BASELINE = "the path that is replaced"

Point = tuple[float, float]


class Plot:
    """An SVG with one pair of axes, of which either may be logarithmic."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], log: str = "") -> None:
        self.x, self.y, self.log, self.title = x, y, log, title
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> Point:
        """Where a point lies in the picture; what is past an edge lies on it."""

        def share(value: float, ends: tuple[float, float], log: bool) -> float:
            low, high, value = (math.log10(v) if log else v for v in (*ends, max(value, ends[0])))
            return min((value - low) / (high - low), 1.0)

        across = LEFT + (WIDTH - LEFT - 16) * share(x, self.x, "x" in self.log)
        return across, BASE - (BASE - TOP) * share(y, self.y, "y" in self.log)

    def line(self, points: Iterable[Point], colour: str, *, dashed: bool = False, wide: float = 1.8) -> None:
        """A line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{wide}"{dash}/>')

    def area(self, low: Sequence[Point], high: Sequence[Point], colour: str) -> None:
        """What lies between two lines."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in (*low, *reversed(high))))
        self.parts.append(f'<polygon points="{path}" fill="{colour}" fill-opacity="0.45"/>')

    def dots(self, points: Iterable[Point], colour: str, radius: float = 3) -> None:
        """A dot at each point."""
        for x, y in (self.at(*point) for point in points):
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')

    def text(self, x: float, y: float, words: str, colour: str = "#111", anchor: str = "start", up: float = 0) -> None:
        """Words at a point of the plot, so many pixels above it."""
        left, top = self.at(x, y)
        self.put(left, top - up, words, colour, anchor)

    def put(self, left: float, top: float, words: str, colour: str = "#111", anchor: str = "start") -> None:
        """Words at a place in pixels."""
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text x="{left:.1f}" y="{top:.1f}" fill="{colour}" text-anchor="{anchor}">{words}</text>')

    def axes(self, x: Mapping[float, str], y: Mapping[float, str], across: str, above: str) -> None:
        """Marks at heights and places, and the axes' names."""
        for value, words in y.items():
            _, top = self.at(self.x[0], value)
            self.parts.append(f'<path d="M{LEFT} {top:.1f}H{WIDTH - 16}" stroke="#e5e7eb"/>')
            self.put(LEFT - 8, top + 4, words, GREY, "end")
        for value, words in x.items():
            self.put(self.at(value, self.y[0])[0], BASE + 17, words, GREY, "middle")
        self.parts.append(f'<path d="M{LEFT} {BASE}H{WIDTH - 16}" stroke="{GREY}"/>')
        self.put(WIDTH - 16, BASE + 34, across, GREY, "end")
        self.put(LEFT - 56, TOP - 7, above, GREY)

    def key(self, entries: Mapping[str, str]) -> None:
        """What each colour is, below the plot."""
        left = float(LEFT)
        for words, colour in entries.items():
            self.parts.append(f'<rect x="{left}" y="{BASE + 25}" width="14" height="9" fill="{colour}"/>')
            self.put(left + 19, BASE + 34, words)
            left += 19 + 7.2 * len(words) + 16

    def write(self, name: str) -> None:
        """Into a file of `FOLDER`."""
        FOLDER.mkdir(exist_ok=True)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{self.title}" font-family="system-ui, sans-serif" font-size="12.5">'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        )
        (FOLDER / name).write_text("\n".join([head, *self.parts, "</svg>"]) + "\n")


# What is judged in the first three pictures


def _case(batch: int, tokens: int, width: int, dtype: str = "bfloat16") -> Case:
    def spec(shape: list[int], dtype: str, name: str) -> dict[str, object]:
        strides = [math.prod(shape[n + 1 :]) for n in range(len(shape))]
        return {"shape": shape, "dtype": dtype, "strides": strides, "offset": 0, "storage": name}

    tensors = {
        "x": spec([batch, tokens, width], dtype, "x"),
        "shift": spec([batch, 1, width], "float32", "shift"),
        "scale": spec([batch, 1, width], "float32", "scale"),
    }
    flags = {"eps": 1e-6, "casting_mode": "float32"}
    data = {"op": "layer_norm_scale_shift", "tensors": tensors, "flags": flags, "values": "normal", "seed": 0}
    return Case.from_dict(data)


def _wrong(x: Tensor, shift: Tensor, scale: Tensor, *, correction: int, between: torch.dtype) -> Tensor:
    variance, mean = torch.var_mean(x.float(), -1, correction=correction, keepdim=True)
    normalised = ((x.float() - mean) * torch.rsqrt(variance + 1e-6)).to(between)
    return (normalised.float() * (1 + scale) + shift).to(x.dtype)


def _reversed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    flipped = (t.flip(-1) for t in (x, shift, scale))
    y: Tensor = reference_ops.layer_norm_scale_shift(*flipped)
    return y.flip(-1)


def _short_root(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x.float(), -1, correction=0, keepdim=True)
    bits = torch.rsqrt(variance + 1e-6).view(torch.int32)
    root = ((bits + 4) & ~7).view(torch.float32)
    return ((x.float() - mean) * root * (1 + scale) + shift).to(x.dtype)


def _cut_off(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    exact = reference_ops.layer_norm_scale_shift(x.double(), shift.double(), scale.double())
    nearest = exact.to(x.dtype)
    away = nearest.double().abs() > exact.abs()
    return torch.where(away, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


CANDIDATES: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "sums in another order": (BROWN, _reversed),
    "one rounding to bfloat16 more": (GOLD, functools.partial(_wrong, correction=0, between=torch.bfloat16)),
    "a reciprocal root of 21 bits": (GREEN_TEXT, _short_root),
    "last bits cut off": (VIOLET, _cut_off),
    "variance over N - 1": (RED, functools.partial(_wrong, correction=1, between=torch.float32)),
}


def _judged(case: Case) -> tuple[Target, dict[str, Tensor]]:
    """What the case should give, and each candidate's errors against the truth, float64."""
    arguments = materialise(case)
    x, shift, scale = (arguments.kwargs[name] for name in ("x", "shift", "scale"))
    expected = expect(case, arguments)
    ((_, target),) = expected.target(expected.baseline)
    errors = {name: op(x, shift, scale).double() - target.truth for name, (_, op) in CANDIDATES.items()}
    return target, {BASELINE: target.baseline.double() - target.truth, **errors}


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def one_rule() -> None:
    """How often an error of each size is made: by the path that is replaced, and by candidates."""
    target, errors = _judged(_case(2, 64, 512))
    plot = Plot("Errors in ulp of bfloat16", (0, 1.6), (0, 0.12), "")
    plot.axes(
        {n / 4: f"{n / 4:g}" for n in range(7)},
        {n / 100: f"{n} %" for n in (0, 4, 8, 12)},
        "error, in ulp of the output",
        "share of the elements",
    )
    colours = {BASELINE: BLUE, **{name: colour for name, (colour, _) in CANDIDATES.items()}}
    shown = (BASELINE, "sums in another order", "one rounding to bfloat16 more", "variance over N - 1")
    for n, name in enumerate(shown):
        ulps = (errors[name] / target.budget.unit).abs()
        counts = torch.histc(ulps.float(), 40, 0, 1.6) / ulps.numel()
        width = 5 if n == 0 else 1.8
        plot.line([(0.04 * i + 0.02, float(count)) for i, count in enumerate(counts)], colours[name], wide=width)
        rms = _rms(errors[name] / target.budget.unit)
        told = "" if n == 0 else ": no further" if rms <= _rms(errors[shown[0]] / target.budget.unit) else ": further"
        plot.put(360, TOP + 14 + 19 * n, f"{name}, RMS {rms:.4f} ulp{told}", colours[name])
    plot.write("one-rule.svg")


def budget() -> None:
    """Each element's error beside what it may be."""
    target, errors = _judged(_case(1, 1, 64))
    allowed = target.budget.allowed.flatten().tolist()
    plot = Plot("The budget of each element of a row", (-0.5, 63.5), (1e-5, 0.1), "y")
    plot.axes(
        {n: str(n) for n in range(0, 64, 8)},
        {1e-4: "1e-4", 1e-3: "1e-3", 1e-2: "1e-2", 0.1: "0.1"},
        "column",
        "|error|",
    )
    plot.line([(n + d, value) for n, value in enumerate(allowed) for d in (-0.5, 0.5)], "#111", wide=1.4)
    for name, colour in (("sums in another order", BROWN), ("variance over N - 1", RED)):
        found = errors[name].abs().flatten().tolist()
        plot.dots([(n, value) for n, value in enumerate(found)], colour, 2.8)
    plot.key({"budget": "#111", "sums in another order": BROWN, "variance over N - 1": RED})
    plot.write("budget.svg")


def tiers() -> None:
    """Percent of the budget used, and RMS error over the replaced path's: both numbers of each candidate."""
    target, errors = _judged(_case(2, 64, 512, "float32"))
    plot = Plot("Tiers by budget used and RMS error", (1, 1_000_000), (0.4, 10), "xy")
    plot.axes(
        {1: "1 %", 10: "10 %", 100: "100 %", 1000: "1,000 %", 10_000: "10,000 %"},
        {0.5: "0.5x", 1: "1x", 2: "2x", 5: "5x"},
        "greatest share of the budget that an element used",
        "RMS error, times that of the path that is replaced",
    )
    plot.area([(1, 0.4), (100, 0.4)], [(1, 1.0), (100, 1.0)], GREEN)
    plot.area([(1, 1.0), (100, 1.0)], [(1, 10), (100, 10)], SAND)
    plot.text(1.1, 0.44, "lossless", GREEN_TEXT)
    plot.text(1.1, 8.5, "close", "#7a6420")
    plot.text(950_000, 0.44, "over 100 %: INCORRECT_NUMERICAL", RED, "end")
    baseline = errors[BASELINE]
    for name, error in errors.items():
        used = 100 * float((error.abs() / target.budget.allowed).max())
        ratio = _rms(error) / _rms(baseline)
        colour = CANDIDATES[name][0] if name in CANDIDATES else BLUE
        plot.dots([(used, ratio)], colour, 5)
        ulps = error / target.budget.unit
        signed = float((ulps * target.truth.sign()).mean())
        biased = f": {signed:+.2f} ulp on average, BIASED" if SYSTEMATIC * _rms(ulps) < abs(signed) < 1 else ""
        words = f"{name} (bit-exact: itself)" if name == BASELINE else f"{name}{biased}"
        far = ratio > plot.y[1]  # drawn on the upper edge
        words += f" ({ratio:,.0f}x)" if far else ""
        up = {BASELINE: 10, "variance over N - 1": -22, "one rounding to bfloat16 more": -42}.get(name, -5)
        plot.text(used * (0.8 if far else 1.25), ratio, words, colour, "end" if far else "start", up)
    plot.write("tiers.svg")


# What comes from a run


def keep(run: Path) -> None:
    """Keep of a run's records what is drawn."""
    _, records = read_run(run)
    model = {record.check: record for record in records if record.level is Level.MODEL}
    teacher, band = model["teacher-forced"], model["band"]
    series = {**teacher.series, **band.series}
    data = {
        "op_set": teacher.op_set,
        "places": teacher.case["places"],
        "reasons": [teacher.reason, band.reason],
        "series": {name: [float(f"{value:.6g}") for value in values] for name, values in series.items()},
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "run.json").write_text(json.dumps(data, indent=1) + "\n")


def teacher_forced() -> None:
    """The error that each site makes along the truth's own trajectory."""
    data = json.loads((FOLDER / "run.json").read_text())
    arms = {
        name: data["series"][f"{arm}_error_per_place"]
        for name, arm in (("reference", "baseline"), ("candidate", "candidate"))
    }
    count = len(arms["reference"])
    values = [value for found in arms.values() for value in found if value > 0]
    plot = Plot("Error of each site, teacher-forced", (0, count - 1), (min(values) / 1.5, max(values) * 1.5), "y")
    powers = range(math.ceil(math.log10(min(values) / 1.5)), math.floor(math.log10(max(values) * 1.5)) + 1)
    heights = {
        f * 10.0**n: f"{f}e{n}"
        for n in powers
        for f in (1, 2, 5)
        if min(values) / 1.5 < f * 10.0**n < max(values) * 1.5
    }
    blocks: dict[str, int] = {}
    for n, place in enumerate(data["places"]):
        words = str(place).partition(" in ")[2]
        blocks.setdefault(" ".join(words.split()[:2]) if words.startswith("block") else "", n)
    plot.axes(
        {n: words for words, n in blocks.items() if words},
        heights,
        "",
        "RMS error of each site, in the model's order, share of the truth's RMS",
    )
    plot.line(list(enumerate(arms["reference"])), BLUE, wide=4)
    plot.line(list(enumerate(arms["candidate"])), BROWN)
    wrong = [n for n, p in enumerate(data["series"].get("p_per_place", [])) if p < 1e-3]
    plot.dots([(n, arms["candidate"][n]) for n in wrong], RED, 4)
    plot.key({"reference": BLUE, "candidate: variance over N - 1": BROWN, "further from the truth": RED})
    plot.write("teacher-forced.svg")


def bands() -> None:
    """Distances to the truth's latents over the steps, beside those of legal replays."""
    series: dict[str, list[float]] = json.loads((FOLDER / "run.json").read_text())["series"]
    drawn = [
        values
        for name, values in series.items()
        if name.endswith("_per_step") and ("band" in name or "distance" in name)
    ]
    values = [value for found in drawn for value in found if value > 0]
    count = len(series["candidate_distance_per_step"])
    plot = Plot("Distance to the truth's latents", (1, count), (min(values) / 1.2, max(values) * 1.2), "y")
    heights = {f * 10.0**n: f"{f}e{n}" for n in range(-5, 1) for f in (1, 2, 5)}
    heights = {height: words for height, words in heights.items() if min(values) / 1.2 < height < max(values) * 1.2}
    plot.axes(
        {n: str(n) for n in range(1, count + 1)},
        heights,
        "denoising step",
        "distance to the truth's latents, median of the prompts",
    )
    for kind, colour in (("close", SAND), ("lossless", GREEN)):
        edges = [
            [(n + 1.0, v) for n, v in enumerate(series[f"{kind}_band_{end}_per_step"])] for end in ("least", "greatest")
        ]
        plot.area(edges[0], edges[1], colour)
    for arm, colour, width in (("reference", BLUE, 2.2), ("candidate", RED, 1.8)):
        plot.line([(n + 1.0, v) for n, v in enumerate(series[f"{arm}_distance_per_step"])], colour, wide=width)
    plot.key({"reference": BLUE, "variance over N - 1": RED, "lossless band": GREEN, "close band": SAND})
    plot.write("bands.svg")


if __name__ == "__main__":
    if sys.argv[1:]:
        keep(Path(sys.argv[1]))
    for draw in (one_rule, budget, tiers, *((teacher_forced, bands) if (FOLDER / "run.json").is_file() else ())):
        draw()
