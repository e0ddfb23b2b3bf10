"""The registry: which ops exist, and the op sets that offer them.

An op exists if ``reference_ops`` has a file of its name. An op set is any module (or .py file) with
functions of those names; ``fused_ops`` and ``reference_ops`` are two of them.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from validation.adapters import shells
from validation.compiled.ptx import executing
from validation.errors import UsageError
from validation.ops import surroundings, tracebacks

Op = Callable[..., Any]
T = TypeVar("T")

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
    """Raise UsageError unless there is an op of that name."""
    if name not in reference_op_names():
        raise UsageError(f"unknown op {name!r}, expected one of: {', '.join(reference_op_names())}")


@dataclasses.dataclass(frozen=True)
class OpSet:
    """Functions that offer some of the ops.

    Attributes:
        name: its name in results.
        functions: the ops it provides, by name.
        origin: names it on a command line (``--ops ORIGIN``).
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


def op_set_from(offered: Any, name: str, origin: str) -> OpSet:
    """The op set of the functions that a module, a mapping or another object has under the ops' names.

    A function that a module merely imports from torch does not count.

    Raises:
        UsageError: it has none of them, or one that cannot be called.
    """
    functions, imported = {}, []
    for op in reference_op_names():
        value = _attribute(offered, op)
        if value is None or inspect.ismodule(value):
            continue
        if inspect.ismodule(offered) and _is_of_another(value, offered):
            imported.append(op)
            continue
        if not callable(value):
            raise UsageError(f"{origin}: {op} is a {type(value).__name__}, expected a function")
        functions[op] = value
    if not functions:
        others = f" itself (it imports {', '.join(imported)} from torch)" if imported else ""
        raise UsageError(
            f"{origin} defines none of the ops{others}, expected at least one of: {', '.join(reference_op_names())}"
        )
    return OpSet(name, functions, origin)


def _attribute(offered: Any, op: str) -> Any:
    if isinstance(offered, Mapping):
        return offered.get(op)
    return vars(offered).get(op) if inspect.ismodule(offered) else getattr(offered, op, None)


def _is_of_another(value: Any, module: ModuleType) -> bool:
    """Whether a value in a module is one of torch's own functions, and the module is not torch's.

    A function derived from one (``torch.compile(torch.rms_norm)``) also names torch as its module, but is not an
    attribute of it.
    """
    home = str(getattr(value, "__module__", ""))
    package = home.partition(".")[0]
    if package != "torch" or package == module.__name__.partition(".")[0]:
        return False
    return getattr(sys.modules.get(home), str(getattr(value, "__name__", "")), None) is value


def load_op_set(spec: str) -> OpSet:
    """The op set of a command line: an entry point's name, an importable module, or the path of a .py file.

    ``MODULE:NAME`` asks the module's function ``op_set(NAME)`` for it, as for the planted faults. An entry point may
    name a module, a mapping, an object that has the ops as attributes, or an `OpSet`. The current folder and that of a
    file stay on ``sys.path``, appended last, so a candidate can import its neighbours even during a call.
    Where PTX is executed on the CPU its functions are called as on a GPU (`validation.adapters.shells`).

    Raises:
        UsageError: nothing of that name can be found or imported, or it defines none of the ops.
    """
    ops = _loaded(spec)
    if executing.target() is None:
        return ops
    return dataclasses.replace(ops, functions={name: shells.on_gpu(op) for name, op in ops.functions.items()})


def _gpu() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if executing.target() is None else shells.as_on_gpu()


def _loaded(spec: str) -> OpSet:
    with contextlib.suppress(FileNotFoundError):  # deleted
        _look_in(Path.cwd())
    point = next(iter(entry_points(group=ENTRY_POINT_GROUP, name=spec)), None)
    if point is not None:
        return _imported(spec, functools.partial(_of_entry_point, point))
    if spec.endswith(".py") or "/" in spec:
        path = Path(spec)
        if not path.is_file():
            raise UsageError(f"--ops: no file {spec}, expected a .py file or an importable module")
        _look_in(path.resolve().parent)
        return op_set_from(_imported(spec, lambda: _load_file(path)), path.stem, spec)
    module_name, colon, name = spec.partition(":")
    module = _imported(module_name, lambda: importlib.import_module(module_name))
    if not colon:
        return op_set_from(module, spec.rpartition(".")[2], spec)
    if not callable(getattr(module, "op_set", None)):
        raise UsageError(f"--ops: {module_name} has no function op_set, expected one for {spec}")
    made: OpSet = _imported(spec, lambda: module.op_set(name))
    return made


def _look_in(folder: Path) -> None:
    """Append a folder to ``sys.path``, last, so that nothing in it shadows an installed package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _of_entry_point(point: EntryPoint) -> OpSet:
    offered = point.load()
    if isinstance(offered, OpSet):
        return dataclasses.replace(offered, name=point.name, origin=point.name)
    return op_set_from(offered, point.name, point.name)


def _load_file(path: Path) -> ModuleType:
    name = f"_op_set_{path.stem}_{abs(hash(path.resolve()))}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"--ops: {path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    # Registered before it runs, as by an import: triton and dataclasses look modules up by name.
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    return module


def _imported(spec: str, load: Callable[[], T]) -> T:
    """The result of ``load``, which imports a candidate and so runs its code; any exception becomes a UsageError.

    If the import changes process-wide torch state, it is restored, with a warning. Where PTX is executed on the CPU the
    candidate believes in a GPU (`validation.adapters.shells`).
    """
    try:
        with surroundings.kept() as around, _gpu():
            loaded = load()
        if around.changed:
            warnings.warn(f"importing {spec}: {around.changed}; put back, for truth and inputs too", stacklevel=3)
        return loaded
    except UsageError:
        raise
    except BaseException as error:  # SystemExit too, and pytest.skip's exception
        if tracebacks.is_interrupt(error):
            raise
        said = f": {tracebacks.said(error)}" if tracebacks.said(error) else ""
        raise UsageError(
            f"--ops: cannot import {spec}: {type(error).__name__}{said}{tracebacks.of_error(error)}, "
            "expected a module or .py file that can be imported"
        ) from error
