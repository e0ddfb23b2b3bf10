"""All private names of torch and Triton that the suite uses, each behind a guard.

Any release may remove such a name. The guard then raises not an AttributeError in the middle of a run, but a
`PrivateNameError`, which says what is missing, which versions are known to have it, and what to install.
"""

import contextlib
import ctypes
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from validation.errors import UsageError

# From the first version on, below the second; pyproject.toml has the same bounds.
KNOWN = {"torch": ("2.11", "2.15"), "triton": ("3.6", "3.10")}


class PrivateNameError(UsageError):
    """The installed torch or Triton lacks a private name that the suite is built on."""


@contextlib.contextmanager
def known(package: str) -> Iterator[None]:
    """Guard a block that uses private names of a package.

    Raises:
        PrivateNameError: one is missing.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        first, end = KNOWN[package]
        raise PrivateNameError(
            f"{package} {version(package)} has no private name that validation is built on ({error}); known are the "
            f"versions from {first} on, below {end}: pip install '{package}>={first},<{end}'"
        ) from error


with known("torch"):
    import torch
    from torch import UntypedStorage
    from torch._C import (
        DisableTorchFunction,
        DispatchKey,
        DispatchKeySet,
        _dispatch_has_kernel_for_dispatch_key,
        _dispatch_key_for_device,
        _dispatch_keys,
        _dispatch_keyset_full_after,
        _EnableTorchFunction,
        _len_torch_function_stack,
    )
    from torch._ops import OpOverload
    from torch.cuda import _sleep as cuda_sleep
    from torch.library import _impls as library_impls
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
    from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

    OpOverload.redispatch  # noqa: B018  # looked up, so that it is missed here

__all__ = [
    "KNOWN",
    "DispatchKey",
    "DispatchKeySet",
    "DispatchMode",
    "PrivateNameError",
    "bound_arguments",
    "cuda_sleep",
    "decomposition_table",
    "device_guard_for_cuda",
    "disable_current_modes",
    "dispatch_key_for_device",
    "dispatch_keys",
    "dynamo",
    "fake_tensor_mode",
    "has_kernel",
    "inductor_module",
    "keys_after",
    "known",
    "library_impls",
    "schema_of",
    "storage_identity",
    "torch_function_modes",
    "torch_function_off",
    "torch_function_on",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "triton_module",
]


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`TorchDispatchMode` without the wrapper by which torch hides its handler from Dynamo, while there is no Dynamo.

    The wrapper's first call would import it, which takes 1 s, and each call costs as much as the handler's own.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Put the choice between both in place of the wrapper."""
        super().__init_subclass__(**keywords)  # type: ignore[no-untyped-call]
        wrapper: Any = vars(cls).get("__torch_dispatch__")
        handler = getattr(wrapper, "__wrapped__", None)
        if handler is None:
            return

        @functools.wraps(handler)
        def dispatch(*arguments: Any, **keywords: Any) -> Any:
            return (wrapper if "torch._dynamo" in sys.modules else handler)(*arguments, **keywords)

        cls.__torch_dispatch__ = dispatch  # type: ignore[method-assign]


disable_current_modes = _disable_current_modes
dispatch_key_for_device = _dispatch_key_for_device
dispatch_keys = _dispatch_keys
has_kernel = _dispatch_has_kernel_for_dispatch_key
keys_after = _dispatch_keyset_full_after
# How many modes with ``__torch_function__`` are on in this thread; with-blocks in which theirs, and that of tensor
# classes, is not called, or is again.
torch_function_modes = _len_torch_function_stack
torch_function_off = DisableTorchFunction
torch_function_on = _EnableTorchFunction


def storage_identity(storage: UntypedStorage) -> int:
    """A number that is the same for all tensors that share a storage, whichever Python object represents it."""
    with known("torch"):
        return int(storage._cdata)


def schema_of(func: Any) -> Any:
    """The schema of an operation (`torch.ops.aten.add.Tensor`): its arguments, and which of them it writes."""
    with known("torch"):
        return func._schema


def decomposition_table() -> Any:
    """torch's decompositions of operations, by operation; the import takes a second."""
    with known("torch"):
        from torch._decomp import decomposition_table

        return decomposition_table


def fake_tensor_mode() -> Any:
    """A mode in which results have shapes but no memory, also those computed with real tensors."""
    with known("torch"):
        from torch._subclasses.fake_tensor import FakeTensorMode

        return FakeTensorMode(allow_non_fake_inputs=True)


def dynamo() -> Any:
    """``torch._dynamo``, whose import takes seconds."""
    with known("torch"):
        import torch._dynamo

        return torch._dynamo


# The names that the suite reads, replaces or calls, by module.
TRITON: Mapping[str, tuple[str, ...]] = {
    "triton.backends.compiler": ("GPUTarget",),
    "triton.backends.nvidia": ("__file__",),
    "triton.language": (
        "block_type.__init__",
        "block_type.to_ir",
        "block_type.with_element_ty",
        "core",
        "tensor.__init__",
    ),
    "triton.language.semantic": (
        "TritonSemantic.binary_op_sanitize_overflow_impl",
        "TritonSemantic.binary_op_type_checking_impl",
        "TritonSemantic.broadcast_impl_value",
        "TritonSemantic.cast",
        "TritonSemantic.computation_type_impl",
    ),
    "triton.knobs": (
        "nvidia.ptxas.version",
        "runtime.interpret",
        "runtime.jit_cache_hook",
        "runtime.launch_enter_hook.add",
        "runtime.launch_enter_hook.remove",
    ),
    "triton.runtime.autotuner": ("Autotuner.prune_configs", "Autotuner.run"),
    "triton.runtime.cache": ("get_cache_manager", "triton_key"),
    "triton.runtime.driver": ("driver.set_active",),
    "triton.runtime.interpreter": (
        "GridExecutor.__call__",
        "InterpreterBuilder.cast_impl",
        "InterpreterBuilder.create_atomic_cas",
        "InterpreterBuilder.create_atomic_rmw",
        "InterpreterBuilder.create_fma",
        "InterpreterBuilder.create_masked_load",
        "InterpreterBuilder.set_grid_dim",
        "InterpreterBuilder.set_grid_idx",
        "InterpreterBuilder.create_fp_to_fp",
        "TensorHandle",
        "_get_np_dtype",
        "_patch_attr",
        "_patch_builtin",
        "_patch_lang",
        "_patch_lang_tensor",
        "interpreter_semantic.builder.options.debug",
        "interpreter_semantic.scalar_constant",
    ),
    "triton.runtime.jit": ("JITFunction.run",),
}


def triton_module(name: str) -> Any:
    """Import a module of Triton, and check that it has every name listed in `TRITON`.

    Raises:
        PrivateNameError: a name is missing.
    """
    return _module("triton", name, TRITON[name])


def _module(package: str, name: str, paths: Sequence[str]) -> Any:
    with known(package):
        module = importlib.import_module(name)
        for path in paths:
            value: Any = module
            for part in path.split("."):
                value = getattr(value, part)
        return module


# Numbers of c10's device types (torch's c10/core/DeviceType.h).
_CUDA, _META = 1, 14


def device_guard_for_cuda() -> None:
    """Let torch's C++ code enter a GPU's device guard where torch has none, for tensors without memory that say cuda.

    ``FakeTensorMode`` does so in a build for GPUs that finds none. In a build for the CPU ``contiguous`` and indexing
    of such a tensor raise "not linked with support for cuda devices"; the guard of ``meta`` tensors, which does
    nothing, then stands in.
    """
    with known("torch"):
        try:
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
            guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
        except (OSError, ValueError) as error:
            raise AttributeError(f"c10's registry of device guards: {error}") from error
        if guards[_META] is None:
            raise AttributeError("c10's device guard of meta tensors")
    if guards[_CUDA] is None:
        guards[_CUDA] = guards[_META]


# The names that the suite reads, replaces, calls or subclasses, by module of `torch._inductor` and `torch._dynamo`.
INDUCTOR: Mapping[str, tuple[str, ...]] = {
    "torch._dynamo.device_interface": ("CudaInterface.Worker", "register_interface_for_device"),
    "torch._guards": ("TracingContext.get",),
    "torch._inductor.codegen.common": (
        "DeviceOpOverrides",
        "get_device_op_overrides",
        "init_backend_registration",
        "register_backend_for_device",
        "register_device_op_overrides",
    ),
    "torch._inductor.codegen.triton": ("TritonScheduling",),
    "torch._inductor.codegen.wrapper": ("PythonWrapperCodegen.create", "PythonWrapperCodegen.write_header"),
    "torch._inductor.compile_fx": ("compile_fx",),
    "torch._inductor.config": ("patch",),
    "torch._inductor.runtime.triton_helpers": ("set_driver_to_gpu",),
    "torch._inductor.runtime.triton_heuristics": (
        "CachingAutotuner._interpret_args_grid",
        "CachingAutotuner._precompile_config",
        "CachingAutotuner.precompile",
        "CachingAutotuner.run",
    ),
    "torch.utils._triton": ("has_triton.cache_clear",),
}


def inductor_module(name: str) -> Any:
    """Import a module of torch's compiler, and check that it has every name listed in `INDUCTOR`.

    Raises:
        PrivateNameError: a name is missing.
    """
    return _module("torch", name, INDUCTOR[name])


def bound_arguments(function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a launch by the kernel's parameter names; the function has been compiled for such a launch."""
    active = triton_module("triton.runtime.driver").driver.active
    with known("triton"):
        binder = function.device_caches[active.get_current_device()][4]
    bound: Mapping[str, Any] = binder(*arguments, **{**keywords, "debug": False})[0]
    return bound
