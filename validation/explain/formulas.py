"""Formulas as text."""

from validation.explain.quantities import Formula

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_SIXTEEN = ("f16", "bf16")


def text_of(formula: Formula, *, inside: bool = False) -> str:
    """A formula as a line of text, with the opcodes of what is approximate and the type of what has 16 bits.

    Args:
        formula: the formula.
        inside: whether it is an operand of an infix operation.
    """
    if isinstance(formula, str):
        return _leaf(formula, inside)
    op = str(formula[0])
    rest = formula[3:] if op == "sum" else formula[1:]
    short, *modes = op.split(".")
    infix = short in _INFIX and not {"approx", "full", "ftz"} & {*modes}
    operands = [text_of(one, inside=infix) for one in rest]  # type: ignore[arg-type]
    narrow = bool(modes) and modes[-1] in _SIXTEEN
    if infix:
        text = f" {_INFIX[short]} ".join(operands)
        return f"{modes[-1]}({text})" if narrow else f"({text})" if inside else text
    if short == "cvt":
        return f"{modes[1] if modes[0] in ('rn', 'rz', 'rm', 'rp') else modes[0]}({', '.join(operands)})"
    name = ".".join([short, *(mode for mode in modes if mode in ("approx", "full", "ftz"))])
    text = f"{name}({', '.join(operands)})"
    return f"{modes[-1]}({text})" if narrow else text


def _leaf(text: str, inside: bool) -> str:
    """A name, or a constant."""
    try:
        return f"{float(text):g}"
    except ValueError:
        name = text.partition("[")[0]
        return f"({name})" if inside and " " in name and not name.endswith((")", "²")) else name
