"""The pool of compile keys of a sweep, and the cases drawn from it.

A GPU compiles one kernel for each combination of dtypes, forms, layouts, flags and classes of widths and sizes
(`chooser.Chooser.member`). Drawn freely they hardly ever repeat: 300 cases of an op needed 122 to 173 kernels. So a
sweep draws a pool of such combinations from its seed, and its cases from the pool: widths and sizes within their
classes, values and seeds are free, and up to `CASES` cases take as many kernels as the pool has keys.

The first keys serve the declared corners: corners whose choices do not contradict one another share one. The others,
up to `KEYS`, are drawn freely.
"""

import dataclasses
import functools
import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import DataObject, SearchStrategy, data

from validation.cases.chooser import VALUES
from validation.cases.corners import Corner
from validation.cases.layouts import RARE_LAYOUTS
from validation.cases.signature import Signature
from validation.cases.sizes import MANY_HEADS, RARE_SIZES, RARE_WIDTHS
from validation.cases.strategies import SHARED, compile_keys

T = TypeVar("T")
Key = Mapping[str, Any]

# The largest op has up to 108 groups of corners (104 under the interpreter). The same-bits checks may compile up to 39
# kernels more, and 2,000 cases need at most 149 in all (`validation.parity.compile_keys`; seed 0).
KEYS = 109
# A sweep gets `KEYS` keys for each started batch of this many free cases.
CASES = 2000

# The most bytes that a case takes; most of them are for values written out: up to 9 bytes for each of `MAX_LITERALS`,
# in two tensors.
MOST_BYTES = 4096

# Choices of a corner whose cases cannot serve another corner: they are empty, have one column, cost much, or have an
# argument without a layout of its own.
APART = {
    **{f"{one} is {other}": frozenset({True}) for one, other in SHARED},
    "size": frozenset({*RARE_SIZES, "no_batch", "no_tokens"}),
    "heads": frozenset({0, *MANY_HEADS}),
    "width": frozenset({*RARE_WIDTHS, "one"}),
}


def draw_settings(count: int, *, shrink: bool) -> settings:
    """Hypothesis settings for ``count`` examples, all explicit: under CI it would swap in its own, with a deadline."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )


def draw_cases(strategy: SearchStrategy[T], *, seed: int, count: int) -> list[T]:
    """``count`` values drawn from a strategy, the same for the same seed.

    Hypothesis makes each value from random bytes (``fuzz_one_input``, meant for fuzzers), without its engine. The
    engine takes longer, follows an example with near copies of it (300 cases of
    `scale_residual_layer_norm_scale_shift` in one run had 93 distinct shapes), begins with the simplest, and draws one
    number in twenty from the constants in the source of all loaded modules.

    Raises:
        RuntimeError: a value took more than `MOST_BYTES`, or the strategy rejected it.
    """
    lot = random.Random(seed)
    return [_from_bytes()(strategy, lot.randbytes(MOST_BYTES)) for _ in range(count)]


@functools.cache
def _from_bytes() -> Callable[[SearchStrategy[T], bytes], T]:
    passed: list[Any] = []

    @draw_settings(1, shrink=False)
    @given(data())
    def draw(source: DataObject) -> None:
        passed[0] = source.draw(passed[0])

    fuzz_one_input = draw.hypothesis.fuzz_one_input  # type: ignore[attr-defined]

    def make(strategy: SearchStrategy[T], source: bytes) -> T:
        passed[:] = [strategy]
        if fuzz_one_input(source) is None:
            raise RuntimeError(f"Hypothesis drew nothing from {strategy} and {len(source)} bytes")
        made: T = passed.pop()
        return made

    return make


def agree(one: Key, other: Key) -> bool:
    """Whether every choice that is made in both is the same."""
    return all(other.get(name, value) == value for name, value in one.items() if name not in VALUES)


def _apart(choices: Key) -> dict[str, Any]:
    """The choices that keep a corner's cases from serving others; corners may share a key if these are equal."""
    return {
        name: value
        for name, value in choices.items()
        if value in APART.get(name, ()) or (name.endswith(".layout") and value in RARE_LAYOUTS)
    }


@dataclasses.dataclass(frozen=True)
class Pool:
    """The compile keys of a sweep.

    Attributes:
        of_corners: one key for each group of corners; it includes the choices that they force.
        free: the other keys.
        group: maps a corner's name to the index of its key.
    """

    of_corners: tuple[Key, ...]
    free: tuple[Key, ...]
    group: Mapping[str, int]

    @classmethod
    def draw(
        cls,
        signature: Signature,
        wanted: Sequence[tuple[str, Key]],
        seed: int,
        *,
        bfloat16: bool = True,
        cases: int = 0,
    ) -> "Pool":
        """Draw a pool.

        Args:
            signature: the op's signature.
            wanted: pairs of a corner's name and the choices that its key must have.
            seed: determines all keys.
            bfloat16: False leaves bfloat16 out.
            cases: how many free cases will be drawn from the pool.
        """
        lot = random.Random(f"{seed}/{signature.op}/pool")
        groups: list[dict[str, Any]] = []
        group: dict[str, int] = {}
        # Demanding corners come first: those that ask for little fit any group, and are spread at random.
        for name, choices in sorted(wanted, key=lambda item: -len(item[1])):
            asked = {key: value for key, value in choices.items() if key not in VALUES}
            fits = [i for i, g in enumerate(groups) if _apart(g) == _apart(asked) and agree(asked, g)]
            if not fits:
                fits = [len(groups)]
                groups.append({})
            group[name] = lot.choice(fits)
            groups[group[name]] |= asked

        def drawn(forced: Key, label: str, count: int) -> list[dict[str, Any]]:
            strategy = compile_keys(signature, forced, bfloat16=bfloat16)
            return draw_cases(strategy, seed=zlib.crc32(f"{seed}/{signature.op}/{label}".encode()), count=count)

        of_corners = tuple(drawn(forced, f"key {i}", 1)[0] for i, forced in enumerate(groups))
        return cls(
            of_corners,
            tuple(drawn({}, "free keys", max(KEYS * max(math.ceil(cases / CASES), 1) - len(groups), 1))),
            group,
        )

    def of_corner(self, corner: Corner, forced: Key, turn: int) -> Key:
        """A key for a corner's cases: its own at turn 0, then another that agrees with `forced`, if there is one."""
        own = self.of_corners[self.group[corner.name]]
        if turn == 0 or _apart(corner.forced):
            return own
        others = [key for key in self.open() if agree(forced, key)]
        return others[zlib.crc32(corner.name.encode()) % len(others)] if others else own

    def open(self) -> Iterator[Key]:
        """The keys of free cases: the freely drawn ones, then those of corners that can be shared."""
        return itertools.chain(self.free, (key for key in self.of_corners if not _apart(key)))
