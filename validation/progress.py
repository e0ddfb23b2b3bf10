"""How much of some sampling is done, in time, and how long the rest may take."""

from collections.abc import Mapping


class Estimate:
    """How much of the sampling is done, in time, and how long the rest may take."""

    def __init__(self, planned: Mapping[str, int]) -> None:
        """planned: how many samples of each kind."""
        self.left = dict(planned)
        self.count: dict[str, int] = {}
        self.spent: dict[str, float] = {}

    def plan(self, more: Mapping[str, int]) -> None:
        """Add to what is left."""
        for kind, count in more.items():
            self.left[kind] = self.left.get(kind, 0) + count

    def done(self, kind: str, seconds: float, count: int = 1) -> None:
        """So many samples of a kind are there, after so many seconds; cached ones take none."""
        if not count:
            return
        self.left[kind] = max(self.left.get(kind, 0) - count, 0)
        self.count[kind] = self.count.get(kind, 0) + count
        self.spent[kind] = self.spent.get(kind, 0.0) + seconds

    def __str__(self) -> str:
        if not self.spent:
            return "0 %"
        # A kind that was not sampled yet is taken to cost what the reference does: the candidate may cost more.
        mean = {kind: self.spent[kind] / self.count[kind] for kind in self.spent}
        rest = sum(count * mean.get(kind, mean.get("reference", 0.0)) for kind, count in self.left.items())
        share = sum(self.spent.values()) / max(sum(self.spent.values()) + rest, 1e-9)
        left = f"{rest / 60:.0f} min" if rest >= 90 else f"{rest:.0f} s"
        return f"{100 * share:.0f} %, about {left} left"
