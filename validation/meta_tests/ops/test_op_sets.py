"""The values of ``--ops``: files, modules and entry points, and the ops that each provides."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import reference_ops
from validation.device import select
from validation.errors import UsageError
from validation.ops import ENTRY_POINT_GROUP, OpSet, load_op_set, op_set_from

MINE = "def scale_shift(x, shift, scale, *args, **kwargs):\n    return x * (scale + 1) + shift\n"


@pytest.fixture(autouse=True)
def _path_and_modules_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    select(gpu=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("their_", "_op_set_")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0, in {path}, line 2, in <module>"),
        ("import sys\nsys.exit()", "SystemExit, in {path}, line 2, in <module>"),
        ("import pytest\npytest.skip('no GPU', allow_module_level=True)", "Skipped: no GPU"),
        ("raise BaseException('one\\ntwo')", "BaseException: one two, in {path}, line 1"),
        ("class E(Exception):\n    __str__ = None\nraise E", "E: (no text: its __str__ raised TypeError)"),
        ("1 +", "SyntaxError: invalid syntax (their_file.py, line 1)"),
    ],
)
def test_whatever_an_import_raises_is_a_usage_error(tmp_path: Path, body: str, said: str) -> None:
    path = tmp_path / "their_file.py"
    path.write_text(f"{body}\n{MINE}")
    with pytest.raises(UsageError) as caught:
        load_op_set(str(path))
    assert f"--ops: cannot import {path}: {said.format(path=path)}" in str(caught.value)
    assert str(caught.value).endswith(", expected a module or .py file that can be imported")


def test_a_function_op_set_that_exits_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_exit.py").write_text("import sys\ndef op_set(name):\n    sys.exit(name)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="--ops: cannot import their_exit:odd: SystemExit: odd, in "):
        load_op_set("their_exit:odd")


def test_ctrl_c_during_an_import_interrupts(tmp_path: Path) -> None:
    path = tmp_path / "their_file.py"
    path.write_text(f"import signal\nsignal.raise_signal(signal.SIGINT)\n{MINE}")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            load_op_set(str(path))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_module.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    # As for an installed command: the first entry is the command's folder.
    sys.path[:] = [folder for folder in sys.path if folder not in ("", ".")]
    ops = load_op_set("their_module")
    assert (ops.name, ops.origin, set(ops.functions)) == ("their_module", "their_module", {"scale_shift"})
    assert sys.path[-1] == str(tmp_path), "last: what lies there takes the place of nothing that is installed"
    load_op_set("their_module")
    assert sys.path.count(str(tmp_path)) == 1


def test_a_file_imports_its_neighbours_and_as_late_as_in_a_call(tmp_path: Path) -> None:
    (tmp_path / "their_neighbour.py").write_text("FACTOR = 2\n")
    (tmp_path / "their_late_neighbour.py").write_text("SUMMAND = 1\n")
    path = tmp_path / "their_file.py"
    path.write_text(
        "from their_neighbour import FACTOR\n"
        "def scale_shift(x, *_, **__):\n    from their_late_neighbour import SUMMAND\n    return x * FACTOR + SUMMAND\n"
    )
    assert load_op_set(str(path))["scale_shift"](20) == 41
    assert sys.path[-1] == str(tmp_path)


IMPORTS = "from torch.nn.functional import layer_norm\nfrom torch import rms_norm\n"
# Wraps the reference, but is not the reference: `functools.wraps` gives it the reference's module.
WRAPS = "import functools\nresidual_gate_add = functools.wraps(r.residual_gate_add)(lambda *a, **k: 0)\n"


def test_what_a_file_merely_imports_is_none_of_its_ops(tmp_path: Path) -> None:
    path = tmp_path / "their_file.py"
    path.write_text(f"{IMPORTS}import reference_ops as r\nfrom reference_ops import qk_norm\n{WRAPS}{MINE}")
    assert set(load_op_set(str(path)).functions) == {"scale_shift", "residual_gate_add", "qk_norm"}
    path.write_text(IMPORTS)
    said = r"none of the ops itself \(it imports layer_norm, rms_norm from torch\), expected "
    with pytest.raises(UsageError, match=said):
        load_op_set(str(path))


def test_what_is_named_one_by_one_is_offered_wherever_it_comes_from() -> None:
    functions = {"layer_norm": torch.nn.functional.layer_norm, "qk_norm": reference_ops.qk_norm}
    assert op_set_from(functions, "mine", "mine").functions == functions
    assert set(load_op_set("reference_ops").functions) == set(reference_ops.OP_NAMES)


def test_an_entry_point_may_name_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_objects.py").write_text(
        "from validation.ops import OpSet\n"
        "class Kernels:\n    def scale_shift(self, x, *_, **__): return x\n"
        "kernels, nothing = Kernels(), object()\n"
        "ready = OpSet('ready', {'scale_shift': kernels.scale_shift}, 'nowhere')\n"
        "mapping = {'scale_shift': kernels.scale_shift}\n"
    )
    info = tmp_path / "their_objects-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-objects\nVersion: 1.0\n")
    names = ("kernels", "ready", "mapping", "nothing")
    lines = "".join(f"their-{name} = their_objects:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in names[:-1]:
        ops = load_op_set(f"their-{name}")
        assert type(ops) is OpSet
        assert (ops.name, ops.origin, set(ops.functions)) == (f"their-{name}", f"their-{name}", {"scale_shift"})
        assert ops["scale_shift"](3) == 3
    with pytest.raises(UsageError, match="their-nothing defines none of the ops, expected"):
        load_op_set("their-nothing")
