"""What Triton's interpreter computes again for each operation of a kernel, computed once.

Blocks are small, so their arithmetic is the least part of a launch. No value changes: the functions below return what
Triton's own would, or call them.
"""

import functools
import inspect
from typing import Any

import numpy as np

from validation.device.private import triton_module

# Types that two operands of the same type keep in any operation but a division.
KEPT = frozenset(
    {"fp64", "fp32", "fp16", "bf16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "int1"}
)
WIDENED_BY_DIVISION = frozenset({"fp16", "bf16"})

# The operators that are one function of NumPy's for two operands of one of these types.
IN_NUMPY = frozenset({"fp64", "fp32", "fp16", "int64", "int32"})
IN_ONE_STEP: dict[str, tuple[Any, frozenset[str]]] = {
    "__add__": (np.add, IN_NUMPY),
    "__sub__": (np.subtract, IN_NUMPY),
    "__mul__": (np.multiply, IN_NUMPY),
    "__truediv__": (np.divide, frozenset({"fp64", "fp32"})),
}


def hasten(interpreter: Any) -> None:
    """Install all of it in Triton's interpreter; once per process."""
    _patch_once_a_launch(interpreter)
    _skip_unused_overflow_check()
    _remember_types(interpreter)
    _skip_conversions_of_equal_types()
    _patch_faster(interpreter)


def _skip_conversions_of_equal_types() -> None:
    """Take operands of one type as they are, and remember which type two types make.

    Finding out that nothing is to be done was 13 of 42 s of launches under a profiler: shapes are Triton's own tuples,
    each comparison of which makes new types.
    """
    tl = triton_module("triton.language")
    semantic = triton_module("triton.language.semantic").TritonSemantic
    check, cast, broadcast = semantic.binary_op_type_checking_impl, semantic.cast, semantic.broadcast_impl_value
    computed = semantic.computation_type_impl
    types: dict[tuple[str, bool, str, bool, bool], Any] = {}
    tensor = tl.tensor

    @functools.wraps(check)
    def checked(
        self: Any,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        if type(lhs) is tensor and type(rhs) is tensor and lhs.type.name == rhs.type.name:
            name = lhs.dtype.name
            if name in KEPT and not (div_or_mod and name in WIDENED_BY_DIVISION):
                return lhs, rhs
        return check(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    @functools.wraps(cast)
    def casted(self: Any, source: Any, dst_ty: Any, fp_downcast_rounding: Any = None) -> Any:
        if source.dtype.name == dst_ty.scalar.name:
            return source
        return cast(self, source, dst_ty, fp_downcast_rounding)

    @functools.wraps(computed)
    def computation_type(self: Any, a: Any, a_is_scalar: bool, b: Any, b_is_scalar: bool, div_or_mod: bool) -> Any:
        key = (a.name, a_is_scalar, b.name, b_is_scalar, div_or_mod)
        if key not in types:
            types[key] = computed(self, a, a_is_scalar, b, b_is_scalar, div_or_mod)
        return types[key]

    @functools.wraps(broadcast)
    def broadcasted(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = lhs.type, rhs.type
        if left.is_block():
            if not right.is_block():
                return lhs, splat(self, rhs, left.with_element_ty(right.scalar))
            if left.shape.values == right.shape.values:
                return lhs, rhs
        elif right.is_block():
            return splat(self, lhs, right.with_element_ty(left.scalar)), rhs
        return broadcast(self, lhs, rhs)

    def splat(self: Any, scalar: Any, block: Any) -> Any:
        return tensor(self.builder.create_splat(block, scalar.handle), block)

    semantic.binary_op_type_checking_impl, semantic.cast = checked, casted
    semantic.computation_type_impl, semantic.broadcast_impl_value = computation_type, broadcasted


def _patch_faster(interpreter: Any) -> None:
    """Find the builtins to patch once, pass their keywords on, and compute with operands of one type at once.

    Each launch looked for them anew, and each of their calls went through several functions to one of NumPy's.
    """
    tl = triton_module("triton.language")
    semantic, handle, tensor = interpreter.interpreter_semantic, interpreter.TensorHandle, tl.tensor
    builtins: dict[Any, list[tuple[str, Any]]] = {}

    def patch_attr(obj: Any, name: str, member: Any, _builder: Any, scope: Any) -> None:
        def new_member(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        # In debug mode integers are asked for overflow.
        if obj is not tensor or name not in IN_ONE_STEP or semantic.builder.options.debug:
            scope.set_attr(obj, name, new_member)
            return
        compute, kept = IN_ONE_STEP[name]

        def in_one_step(self: Any, other: Any) -> Any:
            if type(other) is tensor and self.dtype.name in kept and self.type.name == other.type.name:
                return tensor(handle(compute(self.handle.data, other.handle.data), self.dtype), self.type)
            return new_member(self, other)

        scope.set_attr(obj, name, in_one_step)

    def patch_builtin(pkg: Any, builder: Any, scope: Any) -> None:
        if pkg not in builtins:
            builtins[pkg] = [(name, it) for name, it in inspect.getmembers(pkg) if tl.core.is_builtin(it)]
        for name, member in builtins[pkg]:
            patch_attr(pkg, name, member, builder, scope)

    interpreter._patch_attr, interpreter._patch_builtin = patch_attr, patch_builtin


def _skip_unused_overflow_check() -> None:
    """Skip the int64 overflow check of each integer operation unless ``debug`` is on.

    It ends in a ``device_assert``, which otherwise does nothing; it took a quarter of a launch's time.
    """
    semantic = triton_module("triton.language.semantic").TritonSemantic
    check = semantic.binary_op_sanitize_overflow_impl

    @functools.wraps(check)
    def checked(self: Any, *args: Any) -> Any:
        return check(self, *args) if self.builder.options.debug else None

    semantic.binary_op_sanitize_overflow_impl = checked


def _remember_types(interpreter: Any) -> None:
    """Cache by type what follows from it: its NumPy dtype, a block's shape, a tensor's attributes.

    Each operation of a kernel creates a few dozen such types and tensors in all, which cost more than the arithmetic.
    Types of one name are equal (``dtype.__eq__``).
    """
    tl = triton_module("triton.language")
    dtype_of, init_block, init_tensor = interpreter._get_np_dtype, tl.block_type.__init__, tl.tensor.__init__
    with_element, block_to_ir = tl.block_type.with_element_ty, tl.block_type.to_ir
    in_ir: dict[str, Any] = {}
    dtypes: dict[str, Any] = {}
    of_other_elements: dict[tuple[str, str], Any] = {}
    blocks: dict[Any, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}

    @functools.wraps(dtype_of)
    def numpy_dtype(tt_dtype: Any) -> Any:
        if tt_dtype.name not in dtypes:
            dtypes[tt_dtype.name] = dtype_of(tt_dtype)
        return dtypes[tt_dtype.name]

    @functools.wraps(init_block)
    def block(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *shape) if all(type(size) is int for size in shape) else None
        if key in blocks:
            vars(self).update(blocks[key])
            self.element_ty = element_ty
            return
        init_block(self, element_ty, shape)
        if key is not None:
            blocks[key] = dict(vars(self))

    @functools.wraps(init_tensor)
    def tensor(self: Any, handle: Any, of: Any) -> None:
        if of.name in tensors:
            vars(self).update(tensors[of.name])
            self.handle, self.type, self.dtype = handle, of, of.scalar
            return
        init_tensor(self, handle, of)
        tensors[of.name] = {name: value for name, value in vars(self).items() if name != "handle"}

    @functools.wraps(with_element)
    def with_element_ty(self: Any, scalar_ty: Any) -> Any:
        key = (self.name, scalar_ty.name)
        if key not in of_other_elements:
            of_other_elements[key] = with_element(self, scalar_ty)
        return of_other_elements[key]

    @functools.wraps(block_to_ir)
    def to_ir(self: Any, builder: Any) -> Any:
        if self.name not in in_ir:
            in_ir[self.name] = block_to_ir(self, builder)
        return in_ir[self.name]

    interpreter._get_np_dtype, tl.block_type.__init__, tl.tensor.__init__ = numpy_dtype, block, tensor
    tl.block_type.with_element_ty, tl.block_type.to_ir = with_element_ty, to_ir


def _patch_once_a_launch(interpreter: Any) -> None:
    tl = triton_module("triton.language")
    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    # One entry for each running launch: the functions and language modules patched for it, and what undoes the patches.
    running: list[tuple[set[int], list[Any]]] = []

    def patch_lang(fn: Any) -> Any:
        if not running:
            return patch(fn)
        done, scopes = running[-1]
        if id(fn) in done:
            return _NOTHING_TO_UNDO
        done.add(id(fn))
        languages = {id(value) for value in fn.__globals__.values() if value is tl or value is tl.core}
        if languages and languages <= done:
            return _NOTHING_TO_UNDO
        scope = patch(fn)
        done |= languages
        scopes.append(scope)
        return _NOTHING_TO_UNDO

    def run_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        running.append((set(), []))
        try:
            with np.errstate(all="ignore"):  # a kernel computes with NaN and inf as a GPU does: without a word
                return launch(self, *args, **kwargs)
        finally:
            for scope in reversed(running.pop()[1]):
                scope.restore()

    interpreter.GridExecutor.__call__ = run_launch
    interpreter._patch_lang = patch_lang


class _Nothing:
    def restore(self) -> None:
        """Does nothing: the launch undoes its patches itself, at its end."""


_NOTHING_TO_UNDO = _Nothing()
