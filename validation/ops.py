"""The registry: which ops exist, and the op sets that offer them.

An op exists where ``reference_ops`` has a file of its name. An op set is any module (or .py file) with
functions of those names; ``fused_ops`` and ``reference_ops`` are two of them.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from validation.errors import UsageError

Op = Callable[..., Any]

ENTRY_POINT_GROUP = "validation.ops"


def reference_op_names() -> tuple[str, ...]:
    """The names of all ops, in alphabetical order."""
    import reference_ops

    return tuple(reference_ops.OP_NAMES)


def reference_op(name: str) -> Op:
    """The reference op of that name.

    Raises:
        UsageError: there is none.
    """
    import reference_ops

    check_op_name(name)
    op: Op = getattr(reference_ops, name)
    return op


def check_op_name(name: str) -> None:
    """UsageError unless there is an op of that name."""
    if name not in reference_op_names():
        raise UsageError(f"unknown op {name!r}, expected one of: {', '.join(reference_op_names())}")


@dataclasses.dataclass(frozen=True)
class OpSet:
    """Functions that offer some of the ops.

    Attributes:
        name: how results call it.
        functions: the ops it provides, by name.
        origin: what repeats it on a command line (``--ops ORIGIN``).
    """

    name: str
    functions: Mapping[str, Op]
    origin: str

    def __contains__(self, op: str) -> bool:
        return op in self.functions

    def __getitem__(self, op: str) -> Op:
        return self.functions[op]

    @property
    def missing(self) -> tuple[str, ...]:
        """Ops that it does not provide, in alphabetical order."""
        return tuple(name for name in reference_op_names() if name not in self.functions)


def op_set_from(module: ModuleType | Mapping[str, Op], name: str, origin: str) -> OpSet:
    """An op set of what a module (or a mapping) defines under the ops' names.

    Raises:
        UsageError: it defines none of them, or something that cannot be called.
    """
    namespace = module if isinstance(module, Mapping) else vars(module)
    functions = {}
    for op in reference_op_names():
        value = namespace.get(op)
        if value is None or inspect.ismodule(value):
            continue
        if not callable(value):
            raise UsageError(f"{origin}: {op} is a {type(value).__name__}, expected a function")
        functions[op] = value
    if not functions:
        raise UsageError(
            f"{origin} defines none of the ops, expected at least one of: {', '.join(reference_op_names())}"
        )
    return OpSet(name, functions, origin)


def load_op_set(spec: str) -> OpSet:
    """The op set of a command line: an entry point's name, an importable module, or the path of a .py file.

    ``MODULE:NAME`` asks the module's function ``op_set(NAME)`` for it, as the planted faults have it.

    Raises:
        UsageError: nothing of that name can be found or imported, or it defines none of the ops.
    """
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == spec:
            return op_set_from(_import(spec, point.load), spec, spec)
    if spec.endswith(".py") or "/" in spec:
        path = Path(spec)
        if not path.is_file():
            raise UsageError(f"--ops: no file {spec}, expected a .py file or an importable module")
        return op_set_from(_import(spec, lambda: _load_file(path)), path.stem, spec)
    module_name, colon, name = spec.partition(":")
    module = _import(module_name, lambda: importlib.import_module(module_name))
    if not colon:
        return op_set_from(module, spec.rpartition(".")[2], spec)
    if not callable(getattr(module, "op_set", None)):
        raise UsageError(f"--ops: {module_name} has no function op_set, expected one for {spec}")
    op_set: OpSet = module.op_set(name)
    return op_set


def _load_file(path: Path) -> ModuleType:
    name = f"_op_set_{path.stem}_{abs(hash(path.resolve()))}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"--ops: {path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    # Registered before it runs, as an import would: triton and dataclasses look modules up by name.
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    return module


def _import(spec: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--ops: cannot import {spec}: {type(error).__name__}: {error}, expected a module or .py file"
        ) from error
