"""Fused Triton ops: one kernel launch for each chain of ``reference_ops``.

One op a file; the file, the function and the attribute of this package share the op's name, and each
function has the signature of the reference op of that name. A call launches its kernel or raises;
there is no eager fallback. On the CPU the kernels run under Triton's interpreter, which needs
``TRITON_INTERPRET=1`` in the environment before this package is imported.

Any file added to this folder whose name does not begin with ``_`` becomes an op of this package.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from fused_ops._plan import planned

OP_NAMES = tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))

# Importing a submodule binds the module under its name; the function of that name replaces it.
for _name in OP_NAMES:
    globals()[_name] = planned(getattr(import_module(f"{__name__}.{_name}"), _name))

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]: ...


__all__ = ["OP_NAMES", *OP_NAMES]
