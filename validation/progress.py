"""The progress of sampling: the share done, and the time left."""

from collections.abc import Mapping


class Estimate:
    """The share of the sampling that is done, by time, and the time left, from the mean seconds of each kind."""

    def __init__(self, planned: Mapping[str, int]) -> None:
        """planned: the number of samples by kind."""
        self.left = dict(planned)
        self.count: dict[str, int] = {}
        self.spent: dict[str, float] = {}

    def plan(self, more: Mapping[str, int]) -> None:
        """Add samples, by kind, to those that are left."""
        for kind, count in more.items():
            self.left[kind] = self.left.get(kind, 0) + count

    def done(self, kind: str, seconds: float, count: int = 1) -> None:
        """Record that `count` samples of a kind finished after `seconds` (0 if cached)."""
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
