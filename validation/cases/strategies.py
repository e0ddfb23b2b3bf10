"""Hypothesis strategies for the cases of an op, made from its signature alone."""

from collections.abc import Callable, Mapping
from typing import Any

import hypothesis.strategies as st

from validation.cases import exact
from validation.cases.case import FLOAT_DTYPES, MAX_LITERALS, Case
from validation.cases.chooser import Chooser
from validation.cases.families import FAMILIES
from validation.cases.signature import Signature
from validation.cases.values import EXACT

EPS = (1e-6, 1e-5, 1e-3)
# With an eps of 0 a row of variance zero is 0 / 0, and in a row of nearly zero variance rounding decides the result.
WITHOUT_EPS = ("normal", "variance_eps", "zeros")

# Arguments that may be one tensor if their shapes and dtypes agree; only corners ask for it.
SHARED = (("residual", "x"), ("shift", "scale"), ("q_weight", "k_weight"), ("cos", "sin"))


def cases(
    signature: Signature,
    forced: Mapping[str, Any] | None = None,
    *,
    bfloat16: bool = True,
    hints: Mapping[str, Any] | None = None,
) -> st.SearchStrategy[Case]:
    """Cases of an op.

    Args:
        signature: the op's signature.
        forced: choices that are fixed, by name (see `corners.Corner.forced`).
        bfloat16: False leaves bfloat16 out, if it cannot be judged.
        hints: choices made in three of four cases; in the fourth, the simplest.
    """

    @st.composite
    def make(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Case:
        return _draw_case(signature, Chooser(draw, forced or {}, hints), bfloat16)

    return make()


def compile_keys(
    signature: Signature, forced: Mapping[str, Any] | None = None, *, bfloat16: bool = True
) -> st.SearchStrategy[dict[str, Any]]:
    """Compile keys of an op: forced on `cases`, they leave free only choices that compile no kernel of their own.

    The arguments are those of `cases`.
    """

    @st.composite
    def make(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
        choose = Chooser(draw, forced or {})
        _draw_case(signature, choose, bfloat16)
        return choose.key

    return make()


def _draw_case(signature: Signature, choose: Chooser, bfloat16: bool) -> Case:
    # The seed comes first: Hypothesis varies the first choice of each example if it can, and with the dtype in that
    # place the one case of a corner was float32 in only 1 of 53 corners.
    seed = choose.integer(0, 2**31 - 1)
    dtypes = [name for name in FLOAT_DTYPES if bfloat16 or name != "bfloat16"]
    dtype = choose.pick("dtype", dtypes)
    regime = choose.pick("values", signature.regimes)
    flags: dict[str, Any] = {}
    if "eps" in signature:
        of_regime = {EXACT: exact.EPS, **dict.fromkeys(WITHOUT_EPS, (*EPS, 0.0))}
        flags["eps"] = choose.pick("eps", of_regime.get(regime, EPS), EPS)
    if "casting_mode" in signature:
        flags["casting_mode"] = choose.pick("casting_mode", ("float32", "input"))
    for name in ("interleaved", "inplace"):
        if name in signature:
            flags[name] = choose.pick(name, (False, True))
    if "scale_constant" in signature:
        flags["scale_constant"] = choose.pick("scale_constant", (1.0, 0.0, 0.5))
    tensors = FAMILIES[signature.family](signature, choose, dtype, dtypes)
    for first, second in SHARED:
        if first in signature and second in signature and choose.pick(f"{first} is {second}", (False,), (True,)):
            tensors |= {first: tensors[second]}
    if "k" in tensors and tensors["k"] == tensors["q"]:
        flags["inplace"] = False  # one tensor as q and k: ops refuse to write it twice
    if "inplace" in flags and any(choose.key.get(f"{name}.layout") == "repeated" for name in ("x", "q", "k")):
        flags["inplace"] = False  # ops also refuse memory that holds an element twice
    literals = {}
    if regime == "normal" and choose.pick("literals", (False, False, False, True)):
        small = {n: s for n, s in tensors.items() if 0 < s.numel <= MAX_LITERALS and not n.endswith(".index")}
        literals = {name: choose.literals(spec) for name, spec in small.items() if name in ("x", "q", "scale")}
    return Case(signature.op, tensors, flags, regime, seed, literals)
