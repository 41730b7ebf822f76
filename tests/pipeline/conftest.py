"""The wheel that a deployment installs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.folders import MakeOnce

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(make_once: MakeOnce) -> Path:
    """The project's wheel, built from this checkout: once, since two builds at a time share its build/."""

    def build(folder: Path) -> None:
        line = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
        result = subprocess.run(line, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr

    (path,) = make_once("wheel", build).glob("*.whl")
    return path
