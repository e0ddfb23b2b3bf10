"""Graphs in one form: equal arithmetic is one step, whichever thread did it, of the same number in both kernels."""

import dataclasses

from validation.explain.evaluate import as_number, exact
from validation.explain.graph import WIDENS, Node, walk

# They give the same whatever the order of their first two operands.
_COMMUTE = ("add", "mul", "fma", "min", "max")


@dataclasses.dataclass
class Step:
    """A value of a kernel.

    Attributes:
        number: equal for equal arithmetic on equal elements, in all forms of one `Numbers`.
        op: the opcode without ``.rn`` where that is the only mode; ``element`` or ``constant``.
        operands: their numbers.
        node: the first node that computed it. ids: of all nodes that did.
        thread: the lowest that did, CTAs one after another.
        exact: in float64, had nothing been rounded.
    """

    number: int
    op: str
    operands: tuple[int, ...]
    node: Node
    ids: list[int]
    thread: int
    exact: float

    @property
    def short(self) -> str:
        """Its operation without modes and types."""
        return self.op.partition(".")[0]

    @property
    def value(self) -> float:
        """What the kernel had."""
        return as_number(self.node.bits, self.node.type_)


class Numbers:
    """Numbers for keys, the same for the same key."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def of(self, key: object) -> int:
        """The number of a key."""
        return self._known.setdefault(key, len(self._known))


@dataclasses.dataclass
class Form:
    """A graph in one form.

    Attributes:
        steps: by number, operands first.
        root: the number of the output.
        graph: the root of the graph. order: its nodes, operands first.
    """

    steps: dict[int, Step]
    root: int
    graph: Node
    order: list[Node]

    def operands(self, step: Step) -> list[Step]:
        """The steps that a step is computed from."""
        return [self.steps[n] for n in step.operands]


def form_of(root: Node, numbers: Numbers) -> Form:
    """The form of a graph. What widens exactly, or adds a constant zero, is no step."""
    truths = exact(root)
    steps: dict[int, Step] = {}
    number_of: dict[int, int] = {}

    def zero(number: int) -> bool:
        one = steps[number]
        return one.op == "constant" and one.value == 0

    order = [*walk(root)]
    for node in order:
        given = [number_of[id(one)] for one in node.operands]
        short = node.short
        op = node.op.replace(".rn.", ".") if short in ("add", "sub", "mul") else node.op
        if node.op in WIDENS:
            number_of[id(node)] = given[0]
            continue
        if short == "add" and any(map(zero, given)):
            number_of[id(node)] = given[0] if zero(given[1]) else given[1]
            continue
        if short == "fma" and (zero(given[0]) or zero(given[1])):
            number_of[id(node)] = given[2]
            continue
        if short == "fma" and zero(given[2]):
            op, given = op.replace("fma.rn", "mul"), given[:2]
        if given and all(steps[n].op == "constant" for n in given):
            # Of masked columns and of sizes: a constant too.
            op, given = "constant", []
        if op.partition(".")[0] in _COMMUTE:
            given[:2] = sorted(given[:2])
        if op == "element":
            key: object = (op, node.name)
        elif op == "constant":
            key = (op, as_number(node.bits, node.type_))
        else:
            key = (op, *given)
        number = numbers.of(key)
        number_of[id(node)] = number
        if number in steps:
            known = steps[number]
            known.ids.append(id(node))
            known.thread = min(known.thread, node.thread)
        else:
            steps[number] = Step(number, op, tuple(given), node, [id(node)], node.thread, truths[id(node)])
    return Form(steps, number_of[id(root)], root, order)
