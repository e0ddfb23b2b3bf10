"""Explanations of op sets that differ in one thing each, as JSON; run in a process without Triton's interpreter.

They are made in one process, where each plain kernel is compiled once.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from validation.cases.case import Case
from validation.device import Device, select
from validation.explain.calls import Made
from validation.explain.evaluate import NotTheKernelsError, check
from validation.explain.explain import explain_first
from validation.explain.graph import Node, walk
from validation.meta_tests.explain.op_sets import op_set
from validation.ops import load_op_set


def case_of(op: str, dtype: str, shapes: Mapping[str, list[int]], **flags: Any) -> Case:
    """A case of contiguous tensors."""
    tensors = {}
    for name, shape in shapes.items():
        strides = list(torch.empty(shape, device="meta").stride())
        tensors[name] = {"shape": shape, "dtype": dtype, "strides": strides, "offset": 0, "storage": name}
    return Case.from_json(json.dumps({"op": op, "tensors": tensors, "flags": flags, "values": "normal", "seed": 1}))


def rms_norm(dtype: str, width: int) -> Case:
    return case_of("rms_norm", dtype, {"x": [2, 3, width], "weight": [width]}, eps=1e-6, casting_mode="float32")


def layer_norm(width: int) -> Case:
    return case_of("layer_norm", "float32", {"x": [2, 3, width], "weight": [width], "bias": [width]}, eps=1e-6)


WIDE = rms_norm("float32", 1000)
# By variant, a case where its bits are not the plain one's.
DIFFER = {
    "warps8": WIDE,
    "chunks": WIDE,
    "split": WIDE,
    "fused": WIDE,
    "approx": WIDE,
    "after": WIDE,
    "early": rms_norm("bfloat16", 128),
    "one_pass": layer_norm(128),
    "plain": WIDE,
}
EXCHANGED = "fused, exchanged"
OURS = (
    case_of("rms_norm", "float16", {"x": [2, 3, 72], "weight": [72]}, eps=1e-6, casting_mode="input"),
    case_of("rotary_embedding", "bfloat16", {"x": [1, 3, 2, 8], "cos": [3, 4], "sin": [3, 4]},
            interleaved=True, inplace=True),
    case_of("scale_residual_layer_norm_scale_shift", "bfloat16",
            {name: [1, 3, 72] if name in ("residual", "x") else [72]
             for name in ("residual", "x", "gate", "shift", "scale")}, eps=1e-6, casting_mode="float32"),
)  # fmt: skip


def explained(device: Device) -> dict[str, dict[str, Any]]:
    """By variant, what is said of it against the plain one."""
    pairs = {name: (case, name, "plain") for name, case in DIFFER.items()}
    found = {}
    for name, (case, a, b) in (pairs | {EXCHANGED: (WIDE, "plain", "fused")}).items():
        one = explain_first([case], op_set(a), op_set(b), device)
        found[name] = {"lines": one.lines, "followed": one.followed, "differs": one.case is not None}
    return found


def checked(device: Device) -> dict[str, int]:
    """By op of ours, how many elements there were whose graphs gave the op's bits; it raises where one does not."""
    ops = load_op_set("fused_ops")
    return {case.op: sum(1 for _ in _checked(Made(case, ops, device))) for case in OURS}


def _checked(made: Made) -> Iterator[Node]:
    assert not made.unknown, made.unknown
    for number, output in enumerate(made.outputs):
        for flat in (0, output.numel() // 2, output.numel() - 1):
            index = tuple(map(int, torch.unravel_index(torch.tensor(flat), output.shape)))
            graph = made.element(number, index)
            check(graph, int(output[index].reshape(1).view(torch.int16)[0]) & 0xFFFF)
            assert any(one.op == "element" for one in walk(graph))
            yield graph


def _nothing(_nodes: list[Node]) -> None:
    """What is not touched is right."""


def _another_element(nodes: list[Node]) -> None:
    next(one for one in nodes if one.name == "x[0, 0, 5]").bits ^= 1 << 20


def _another_operand(nodes: list[Node]) -> None:
    products = [one for one in nodes if one.short == "mul" and one.operands[0] is one.operands[1]]
    products[0].operands, products[1].operands = products[1].operands, products[0].operands


def _another_instruction(nodes: list[Node]) -> None:
    next(one for one in nodes if one.op == "div.rn.f32").op = "mul.rn.f32"


def _another_output(nodes: list[Node]) -> None:
    # Its recorded bits and those that the call gave are two things.
    nodes[-1].operands = nodes[-1].operands[::-1]
    nodes[-1].op, nodes[-1].bits = "sub.f32", nodes[-1].bits ^ 1


PLANTED: tuple[Callable[[list[Node]], None], ...] = (
    _nothing, _another_element, _another_operand, _another_instruction, _another_output
)  # fmt: skip


def planted(device: Device) -> dict[str, str]:
    """What is said of graphs that are not what the kernel computes, by what is wrong with them; "" if nothing is."""
    case, found = rms_norm("float32", 64), {}
    made = Made(case, op_set("plain"), device)
    raw = int(made.outputs[0][0, 0, 0].reshape(1).view(torch.int32)[0]) & 0xFFFFFFFF
    for plant in PLANTED:
        graph = made.element(0, (0, 0, 0))
        plant([*walk(graph)])
        try:
            check(graph, raw)
            found[plant.__name__.strip("_")] = ""
        except NotTheKernelsError as error:
            found[plant.__name__.strip("_")] = str(error)
    return found


def main() -> None:
    """Print all of it."""
    device = select(compiled="sm_90")
    print(json.dumps({"explained": explained(device), "checked": checked(device), "planted": planted(device)}))
