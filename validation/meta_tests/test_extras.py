"""Without the packages for sampling a model, ops are still judged, and sampling fails with one clear line."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from validation import extras

ROOT = Path(__file__).resolve().parents[2]

MINE = """
import torch
import reference_ops

def split_rotary_embedding(*args, **kwargs):
    return reference_ops.split_rotary_embedding(*args, **kwargs)
"""

# scikit-image, which is not in the extra, installs scipy.
HEAVY = sorted(extras.MODELS.keys() - {"scipy"})


def test_parity_of_a_file_needs_none_of_them(tmp_path: Path) -> None:
    for module in HEAVY:
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('blocked: {module}')")
    (tmp_path / "mine.py").write_text(MINE)
    command = [sys.executable, "-m", "validation.cli", "parity", "--ops", "mine.py", "--op", "split_rotary_embedding"]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [*command, "--profile", "quick", "--out", "run"],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "split_rotary_embedding" in (tmp_path / "run" / "report.html").read_text()


def test_a_model_without_them_is_a_usage_error_that_names_the_extra(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))\n"
        "from validation.cli import main; sys.exit(main(['quality', '--model', 'helios']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("validate: validate quality needs accelerate, diffusers, ")
    assert line.endswith("expected the extra models: pip install 'fused-op-validation[models]'")
    assert not list(tmp_path.iterdir())


def test_the_extra_and_the_check_name_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {re.split(r"[<>=]", requirement)[0] for requirement in project["optional-dependencies"]["models"]}
    assert listed == set(extras.MODELS.values())
    assert project["name"] in extras.INSTALL
