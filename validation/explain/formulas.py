"""Formulas as text."""

import re
from collections.abc import Iterator

# A step as a tuple: its operation, then its operands, each a name or a step; of a sum its order first.
Formula = tuple[object, ...] | str

_ELEMENT = re.compile(r"[^\[]+\[[\d, ]*\]")
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_SIXTEEN = ("f16", "bf16")


def text_of(formula: Formula) -> str:
    """A formula as a line of text, with the opcodes of what is approximate and the type of what has 16 bits.

    Elements are named by their tensor; where it has several of one tensor, with their index too.
    """
    tensors = [name.partition("[")[0] for name in {*_elements(formula)}]
    return _text(formula, frozenset(name for name in tensors if tensors.count(name) > 1), inside=False)


def _elements(formula: Formula) -> Iterator[str]:
    if isinstance(formula, tuple):
        for one in formula[1:]:
            yield from _elements(one) if isinstance(one, tuple | str) else ()
    elif _ELEMENT.fullmatch(formula):
        yield formula


def _text(formula: Formula, several: frozenset[str], *, inside: bool) -> str:
    """The text; `inside` an infix operation in parentheses if it is one too."""
    if isinstance(formula, str):
        return _leaf(formula, several, inside=inside)
    op = str(formula[0])
    rest = formula[3:] if op == "sum" else formula[1:]
    short, *modes = op.split(".")
    infix = short in _INFIX and not {"approx", "full", "ftz"} & {*modes}
    operands = [_text(one, several, inside=infix) for one in rest]  # type: ignore[arg-type]
    narrow = bool(modes) and modes[-1] in _SIXTEEN
    if short == "mul" and infix and rest[0] == rest[1] and not narrow:
        return f"{operands[0]}²"
    if infix:
        text = f" {_INFIX[short]} ".join(operands)
        return f"{modes[-1]}({text})" if narrow else f"({text})" if inside else text
    if short == "cvt":
        return f"{modes[1] if modes[0] in ('rn', 'rz', 'rm', 'rp') else modes[0]}({', '.join(operands)})"
    name = ".".join([short, *(mode for mode in modes if mode in ("approx", "full", "ftz"))])
    text = f"{name}({', '.join(operands)})"
    return f"{modes[-1]}({text})" if narrow else text


def _leaf(text: str, several: frozenset[str], *, inside: bool) -> str:
    """A name, or a constant."""
    try:
        return f"{float(text):g}"
    except ValueError:
        tensor = text.partition("[")[0]
        if _ELEMENT.fullmatch(text) and tensor not in several:
            return tensor
        return grouped(text) if inside and not _ELEMENT.fullmatch(text) else text


def grouped(text: str) -> str:
    """A formula's text in parentheses, if it is an infix operation."""
    depth = 0
    for n, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and letter == " " and n:
            return f"({text})"
    return text
