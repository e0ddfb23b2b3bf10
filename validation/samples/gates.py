"""Bounds on the measures of a model's rungs: a guard against catastrophe only.

Sampling amplifies every rounding, so no fixed number separates legal roundings from wrong ones.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from validation.errors import UsageError
from validation.files import FIXTURES, read_json
from validation.samples.model import Model
from validation.samples.rung import Measure, Rung
from validation.verdict import Numbers

SECTIONS = {"ceilings": "low", "floors": "high"}
"""By section of a file, which value is better of the measures that it bounds."""


@dataclasses.dataclass(frozen=True)
class Gates:
    """Ceilings on measures where low is better, floors on the others; a measure without a bound is not judged.

    Attributes:
        name: of the file; "none" where there is none.
    """

    name: str
    ceilings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, measures: Iterable[Measure], *, others: bool = False) -> Self:
        """Read a JSON file, which has numbers for some of the measures under ``ceilings`` and ``floors``.

        Args:
            path: the file.
            measures: those that it may bound.
            others: whether bounds of further measures are left out, and are no error.

        Raises:
            UsageError: no such file, an unknown name, no number, no gate at all, or none for a measure that needs one.
        """
        content, known = read_json(path), list(measures)
        found = {
            section: _section(
                path, content.get(section, {}), section, [m.name for m in known if m.better == better], others
            )
            for section, better in SECTIONS.items()
        }
        if not any(found.values()):
            raise UsageError(f"{path} has no gates, expected some under 'ceilings' or 'floors'")
        for measure in known:
            if measure.required and not any(measure.name in bounds for bounds in found.values()):
                section = "ceilings" if measure.better == "low" else "floors"
                raise UsageError(f"{path} has no gate for {measure.name}, expected one under '{section}'")
        return cls(path.stem, **found)

    @classmethod
    def of(cls, model: Model[Any]) -> Self:
        """The gates of a run: those requested, or the checkpoint's own among the fixtures, or else the model's.

        A checkpoint's gates were measured on unchanged prompts: on a grid of 20 a single point is 1e-4 of all. If
        options change the prompts, the model's gates apply. A model without a file has none.

        Raises:
            UsageError: as in `read`.
        """
        request, default = model.request, FIXTURES / "tolerances" / f"{model.name}.json"
        path = request.bounds or (default if request.changes_prompts else model.fixture("tolerances", model.name))
        if request.bounds is None and not path.is_file():
            return cls("none")
        return cls.read(path, (measure for rung in model.rungs for measure in rung.measures))

    def failures(self, numbers: Numbers, rungs: Sequence[Rung]) -> list[tuple[Rung, str]]:
        """Rung and message for each violated bound; NaN violates every bound, None is not judged."""
        found = []
        for rung in rungs:
            for name in (measure.name for measure in rung.measures):
                value = numbers.get(name)
                if not isinstance(value, (int, float)):
                    continue
                if name in self.ceilings and not value <= self.ceilings[name]:
                    found.append((rung, f"{name} {value:.4g} (ceiling {self.ceilings[name]:.4g})"))
                if name in self.floors and not value >= self.floors[name]:
                    found.append((rung, f"{name} {value:.4g} (floor {self.floors[name]:.4g})"))
        return found

    def bounds_of(self, numbers: Numbers) -> Numbers:
        """The bounds of these numbers, for `Record.numbers`."""
        named = (("ceiling", self.ceilings), ("floor", self.floors))
        return {f"{kind}_{name}": bound for kind, bounds in named for name, bound in bounds.items() if name in numbers}


def _section(path: Path, bounds: Any, section: str, known: Sequence[str], others: bool) -> dict[str, float]:
    if not isinstance(bounds, dict):
        raise UsageError(f"{path}: {section} is a {type(bounds).__name__}, expected names and numbers")
    if others:
        bounds = {name: value for name, value in bounds.items() if name in known}
    for name, value in bounds.items():
        if name not in known:
            raise UsageError(f"{path}: unknown name {name!r} in {section}, expected some of: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"{path}: {name} in {section} is {json.dumps(value)}, expected a finite number")
    return {name: float(value) for name, value in bounds.items()}
