"""What a deployment installs: the wheel with the extra cpu, and nothing that training needs."""

import os
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks
from tests.support.results import csv_rows

pytestmark = pytest.mark.xdist_group("deployment")  # else each worker would make the environment

SOURCES = ("train", "export", "runtime")


def run(*line: object, cwd: Path) -> str:
    result = subprocess.run([str(word) for word in line], capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, digits_model: Path, digits_images: Path) -> Path:
    """A new virtual environment, made by the README's steps for deploying; gives the folder of its commands."""
    checkout, elsewhere = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("elsewhere")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("train", "export", "runtime"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    venv.create(elsewhere / "venv", with_pip=True)
    (block,) = (block for block in blocks("README.md") if block.heading == "Deploying")
    build, *steps = block.code.splitlines()

    shell = ("env", f"PATH={elsewhere / 'venv' / 'bin'}:{os.environ['PATH']}", "bash", "-c")
    run(*shell, build, cwd=checkout)
    for wheel in (checkout / "dist").iterdir():
        shutil.copy(wheel, elsewhere)
    shutil.copy(digits_model, elsewhere / "model.onnx")
    shutil.copytree(digits_images, elsewhere / "images")
    for step in steps:
        run(*shell, step, cwd=elsewhere)
    assert len(csv_rows((elsewhere / "results.csv").read_text())) == 360
    return elsewhere / "venv" / "bin"


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}

    files = {path.relative_to(ROOT / source) for source in SOURCES for path in (ROOT / source).rglob("rnn_*/**/*.*")}
    assert packed == {str(path) for path in files if path.suffix != ".pyc"}
    assert "rnn_train/report.html" in packed


@pytest.mark.slow
def test_deployment_classifies_without_torch(
    deployment: Path, tmp_path: Path, digits_model: Path, digits_images: Path
) -> None:
    out = run(
        deployment / "rnn-infer", "--model", digits_model, "--recursive", "--format", "csv", digits_images, cwd=tmp_path
    )

    rows = csv_rows(out)
    assert len(rows) == 360
    assert sum(row["label"] == Path(row["path"]).parent.name for row in rows) > 320


@pytest.mark.slow
def test_deployment_checks_the_model_against_pytorchs_logits(
    deployment: Path, tmp_path: Path, digits_model: Path
) -> None:
    out = run(deployment / "rnn-onnx", "check", digits_model, cwd=tmp_path)

    assert "11 golden samples agree with PyTorch" in out


@pytest.mark.slow
def test_deployment_has_nothing_that_only_training_needs(deployment: Path, tmp_path: Path) -> None:
    listed = run(deployment / "python", "-m", "pip", "list", "--format", "freeze", cwd=tmp_path)

    installed = {line.split("==")[0].lower() for line in listed.splitlines()}
    assert "onnxruntime" in installed
    assert not installed & {"torch", "torchvision", "onnx", "onnxscript", "matplotlib", "scikit-learn"}


@pytest.mark.slow
def test_deployment_takes_at_most_220_megabytes(deployment: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=True)

    def size(folder: Path) -> int:
        return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(deployment.parent) - size(tmp_path / "empty") < 220e6


@pytest.mark.slow
@pytest.mark.parametrize("command", [("rnn-train", "--dataset", "digits"), ("rnn-export", "model.pt", "model.onnx")])
def test_stages_that_need_torch_name_the_packages_to_install(
    deployment: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    result = subprocess.run(
        [str(deployment / command[0]), *command[1:]], capture_output=True, text=True, check=False, cwd=tmp_path
    )

    assert result.returncode == 3
    assert result.stderr.startswith("Error: torch, torchvision, scikit-learn and ")
    assert "are not installed. Install them with: pip install torch torchvision scikit-learn " in result.stderr
    assert len(result.stderr.splitlines()) == 1
