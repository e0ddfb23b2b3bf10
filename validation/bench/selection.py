"""The workloads that ``validate bench ops`` times: each op at the sites of the models, and the benchmark's own."""

import dataclasses
from collections.abc import Sequence

from validation.bench.extra_workloads import GROUP, extra_workloads
from validation.cases.case import Case, TensorSpec
from validation.cases.workloads import Workload
from validation.errors import UsageError
from validation.ops import check_op_name, reference_op_names
from validation.parity.workloads import workloads


def model_names() -> list[str]:
    """The names of models whose sites are timed, and that of the benchmark's own workloads."""
    return list(dict.fromkeys([*(each.model for op in reference_op_names() for each in workloads(op)), GROUP]))


def chosen(names: Sequence[str] = (), models: Sequence[str] = ()) -> list[Workload]:
    """The workloads of these ops and models, or of all; each of a model's workloads with its compact form.

    Raises:
        UsageError: an unknown op or model, or an op that has no workload there.
    """
    for name in names:
        check_op_name(name)
    for model in models:
        if model not in model_names():
            raise UsageError(f"--model: unknown model {model!r}, expected one of: {', '.join(model_names())}")
    found = []
    for name in names or reference_op_names():
        at_sites = (each for workload in workloads(name) for each in (workload, compact(workload)))
        own = [each for each in (*at_sites, *extra_workloads(name)) if each and (not models or each.model in models)]
        if names and not own:
            raise UsageError(f"--op: {name} is at no site of {' or '.join(models)}, expected an op that is")
        found += own
    return found


def without_workload() -> list[str]:
    """Ops that are at no site of the models."""
    return [op for op in reference_op_names() if not workloads(op)]


def compact(workload: Workload) -> Workload | None:
    """The same site with its modulation as two distinct rows for each batch item; None if it has only one row.

    An example is ``scale_shift_table + temb`` of Helios (`validation.models.helios.mount`, ``compact=True``): one
    table ``[B, 2, parts, D]``, whose parts are the arguments' tables, and an int32 index.
    """
    site, bracket, layout = workload.site.partition(", modulation [B,")
    if bracket and not layout.startswith("L,"):
        return None  # another layout of the same values
    few = workload.make(False).tensors
    names = [name for name in ("shift", "scale", "gate") if name in few]
    if not any(few[name].shape[1] > 1 for name in names):
        return None

    def make(whole: bool) -> Case:
        case = workload.make(whole)
        tensors = dict(case.tensors)
        for name in names:
            spec = tensors.pop(name)
            (batch, tokens, width), (_, token, _) = spec.shape, spec.strides
            table = TensorSpec((batch, 2, width), spec.dtype, (2 * token, token, 1), spec.offset, spec.storage)
            tensors[f"{name}.table"] = table
            tensors[f"{name}.index"] = TensorSpec((batch, tokens), "int32", (tokens, 1), 0, "index")
        return dataclasses.replace(case, tensors=tensors)

    return dataclasses.replace(workload, site=f"{site}, compact modulation", make=make)
