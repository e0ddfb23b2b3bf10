"""Private names of torch and Triton are in one module, and the error for a missing one says what to install."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from validation.device import private

ROOT = Path(__file__).resolve().parents[3]
PRIVATE = re.compile(
    r"torch\.(\w+\.)*_\w|triton\.(\w+\.)*_\w|triton\.(runtime|backends|compiler|knobs|language\.semantic)\b"
)


def names(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of each import of torch and Triton, and of each attribute of theirs."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)


def test_no_other_module_uses_a_private_name() -> None:
    files = [path for path in (ROOT / "validation").rglob("*.py") if "meta_tests" not in path.parts]
    assert len(files) > 100
    found = {
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in files
        if path != Path(private.__file__)
        for line, name in names(path.read_text())
        if PRIVATE.match(name) and not name.endswith("__")
    }
    assert not found, "\n".join(sorted(found))


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._C import DispatchKey",
        "torch._C._dispatch_keys(x)",
        "torch.cuda._sleep(1)",
        "from triton.runtime.jit import JITFunction",
        "from triton import knobs",
        "x = triton.knobs.runtime",
    ],
)
def test_a_private_name_is_found(source: str) -> None:
    assert any(PRIVATE.match(name) for _, name in names(source))


def test_a_name_of_triton_that_is_gone_says_which_versions_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = private.triton_module("triton.runtime.interpreter")
    monkeypatch.delattr(module, "_patch_lang")
    with pytest.raises(private.PrivateNameError) as caught:
        private.triton_module("triton.runtime.interpreter")
    said = str(caught.value)
    assert re.match(r"triton \d+\.\d+\.\d+\S* has no private name that validation is built on \(.*_patch_lang", said)
    assert "pip install 'triton>=3.6,<3.10'" in said


def test_a_name_of_torch_that_is_gone_is_a_usage_error_of_the_command() -> None:
    """Runs in a separate process, because the names are looked up once."""
    code = (
        "import sys, torch.utils._python_dispatch as m; del m._disable_current_modes\n"
        "from validation.cli import main\n"
        "sys.exit(main(['parity', '--op', 'layer_norm']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("validate: torch 2.")
    assert "_disable_current_modes" in line
    assert "pip install 'torch>=2.11,<2.15'" in line


def test_pyproject_admits_the_versions_whose_private_names_are_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, (first, end) in private.KNOWN.items():
        assert f"{package}>={first},<{end}" in project["dependencies"]


def test_dynamo_is_not_imported_until_somebody_compiles() -> None:
    """Its import takes 1 s, and torch's own wrapper of a mode's handler would begin with it."""
    code = """
import sys
from validation.device import select
select(gpu=False)
import fused_ops
from validation.cases.errors import good_case
from validation.judge.signature import signature_of
from validation.judge.verdict import judge_call
print(judge_call(good_case(signature_of("rms_norm")), fused_ops.rms_norm, "cpu").status, "torch._dynamo" in sys.modules)
import torch
y = torch.compile(lambda x: x + 1, backend="eager")
print(judge_call(good_case(signature_of("rms_norm")), fused_ops.rms_norm, "cpu").status, float(y(torch.ones(1))))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["PASSED", "False", "PASSED", "2.0", "True"], done.stderr
