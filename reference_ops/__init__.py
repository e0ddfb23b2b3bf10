"""Plain PyTorch reference ops: they define the meaning of each op.

One op a file; the file, the function and the attribute of this package share the op's name. Each
function is the eager chain that a model ran before the fusion, dtype-generic: called in the working
dtype it is the baseline, called on float64 tensors it is the truth. There is no Triton here.

Any file added to this folder becomes an op of this package; shared code is in ``contract``.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from reference_ops.contract import IndexedRows

OP_NAMES = tuple(sorted(m.name for m in iter_modules(__path__) if not m.ispkg))

# Importing a submodule binds the module under its name; the function of that name replaces it.
for _name in OP_NAMES:
    globals()[_name] = getattr(import_module(f"{__name__}.{_name}"), _name)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]: ...


__all__ = ["OP_NAMES", "IndexedRows", *OP_NAMES]
