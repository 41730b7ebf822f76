"""`rnn-export`, and what it leaves behind when it fails."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from rnn_export import export_onnx
from rnn_runtime import Classifier, InputError, SettingsError
from rnn_runtime.model.difference import Difference
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint, file_sha256
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run, RunProcess
from tests.support.processes import at_a_terminal


def test_export_prints_what_it_wrote_and_how_well_it_agrees(run: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    result = run("rnn-export", digits_checkpoint, "model.onnx")

    assert result.returncode == 0, result.stderr
    for text in ("RNN (tanh), 2 layers of 128", "8x8, gray", "unrolled Gemm", "opset", "file size", "360 test"):
        assert text in result.stdout
    assert re.search(r"temperature +│ none", result.stdout)
    assert "onnxruntime - PyTorch" in result.stdout
    assert re.search(r"Probabilities from PyTorch's softmax: the largest difference is \d\.\de-0[6-9]", result.stdout)
    assert "Within tolerance (atol 1e-05, rtol 0.0001)" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_reader_of_the_report_who_has_gone_is_no_failure(
    run_process: RunProcess, tmp_path: Path, digits_checkpoint: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run_process("rnn-export", digits_checkpoint, "model.onnx", stdout=writer)
    finally:
        os.close(writer)

    assert (result.returncode, result.stderr) == (0, "Wrote model.onnx\n")
    assert Classifier(tmp_path / "model.onnx", provider="cpu")


@pytest.mark.slow
def test_no_number_is_cut_at_a_terminal_of_80_columns(tmp_path: Path) -> None:
    random_checkpoint(ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"))).save(tmp_path / "model.pt")

    shown = re.sub(r"\x1b\[[0-9;]*m", "", at_a_terminal("rnn-export", "model.pt", "model.onnx", folder=tmp_path))

    assert len(re.findall(r" \d\.\de-\d\d +│ +\d\.\de-\d\d +│ +\d+\.\d\d % ", shown)) == 12
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


@pytest.mark.slow
def test_a_report_that_cannot_be_printed_leaves_the_model(
    run_process: RunProcess, tmp_path: Path, digits_checkpoint: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        result = run_process("rnn-export", digits_checkpoint, "model.onnx", stdout=full)

    assert result.returncode == 2
    assert result.stderr == ("Wrote model.onnx\nError: standard output: No space left on device\n")
    assert Classifier(tmp_path / "model.onnx", provider="cpu")


def test_metadata_carries_what_a_deployment_wants_to_know(digits_checkpoint: Path, digits_model: Path) -> None:
    metadata = Classifier(digits_model, provider="cpu").metadata

    saved = Checkpoint.load(digits_checkpoint)
    assert metadata.spec == saved.spec
    assert metadata.spec.class_names == tuple("0123456789")
    assert metadata.checkpoint_sha256 == file_sha256(digits_checkpoint)
    assert metadata.metrics["test_accuracy"] == saved.metrics["test_accuracy"]
    assert metadata.export["graph"] == "unrolled Gemm"
    assert set(metadata.export["versions"]) == {"torch", "onnx", "onnxruntime"}
    assert {row["images"] for row in metadata.parity["rows"]} == {"test", "random", "all 0", "all 255"}
    assert len(metadata.golden.images) == 11


def test_metadata_is_text_that_any_onnx_reader_shows(digits_model: Path) -> None:
    props = {prop.key: prop.value for prop in onnx.load(digits_model).metadata_props}

    assert props["format"] == "rnn-onnx"
    assert json.loads(props["model"])["cell"] == "rnn"
    assert json.loads(props["parity"])["atol"] == 1e-5


@pytest.mark.parametrize(
    ("image", "count"),
    [
        (ImageSpec(28, 28, 1), 11),
        (ImageSpec(20, 900, 1), 2),
        pytest.param(ImageSpec(1500, 4096, 1), 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_golden_samples_stay_small_however_large_the_images_are(tmp_path: Path, image: ImageSpec, count: int) -> None:
    random_checkpoint(ModelSpec(image, ("a", "b"), hidden_size=4)).save(tmp_path / "model.pt")
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")

    classifier = Classifier(tmp_path / "model.onnx", provider="cpu")
    golden = classifier.metadata.golden

    (text,) = (p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props if p.key == "golden_samples")
    assert len(text) <= 65536
    assert len(golden.images) == count
    assert len(np.unique(golden.images[0])) > 100
    samples = Checkpoint.load(tmp_path / "model.pt").samples.numpy()
    assert np.array_equal(golden.images[3:], samples[: count - 3 if count > 3 else 0])
    assert Difference.between(classifier.predict_logits(golden.images), golden.logits).within_tolerance


def test_same_checkpoint_gives_the_same_bytes(run: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        assert run("rnn-export", digits_checkpoint, name).returncode == 0

    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_beyond_tolerance_it_fails_and_writes_nothing(run: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    result = run("rnn-export", "--atol", "0", "--rtol", "0", digits_checkpoint, "model.onnx")

    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "model.onnx: not written" in result.stderr
    assert "float64" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_the_old_model_as_it_was(run: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"the old model")

    result = run("rnn-export", "--atol", "0", "--rtol", "0", digits_checkpoint, "model.onnx")

    assert result.returncode == 1
    assert (tmp_path / "model.onnx").read_bytes() == b"the old model"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(run: Run, tmp_path: Path, value: float) -> None:
    checkpoint = random_checkpoint(ModelSpec(ImageSpec(4, 4, 1), ("a", "b"), hidden_size=4))
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    weights["linear.bias"][0] = value
    replace(checkpoint, weights=weights).save(tmp_path / "model.pt")

    result = run("rnn-export", "model.pt", "model.onnx")

    assert result.returncode == 2
    assert "linear.bias" in result.stderr
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        (b"", "not a checkpoint"),
        (b"PK\x03\x04 nonsense", "not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(run: Run, tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)

    result = run("rnn-export", "model.pt", "model.onnx")

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: model.pt: ")
    assert problem in result.stderr
    assert not (tmp_path / "model.onnx").exists()


def test_another_programs_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "model.pt")

    result = run("rnn-export", "model.pt", "model.onnx")

    assert result.returncode == 2
    assert result.stderr == "Error: model.pt: not a checkpoint that rnn-train wrote\n"


def test_missing_output_folder_is_said_before_anything_is_done(run: Run, digits_checkpoint: Path) -> None:
    result = run("rnn-export", digits_checkpoint, "models/model.onnx")

    assert result.returncode == 2
    assert result.stderr == "Error: models/model.onnx: the folder models does not exist. Create it first\n"


def test_parity_without_data_uses_the_checkpoints_own_images(run: Run, tmp_path: Path) -> None:
    random_checkpoint(ModelSpec(ImageSpec(6, 4, 1), ("a", "b"), "gru", hidden_size=4)).save(tmp_path / "model.pt")

    result = run("rnn-export", "model.pt", "model.onnx")

    assert result.returncode == 0, result.stderr
    assert "16 checkpoint samples" in result.stdout
    assert "GRU operator" in result.stdout


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"precision": "int4"}, "`precision` must be one of fp32, fp16, int8, not 'int4'"),
        ({"graph": "auto"}, "`graph` must be one of unrolled, wavefront, scan, operator, not 'auto'"),
        ({"atol": -1.0}, "`atol` must be a number from 0 up, not -1.0"),
        ({"rtol": float("nan")}, "`rtol` must be a number from 0 up, not nan"),
    ],
)
def test_unknown_values_from_python_are_settings_errors(
    tmp_path: Path, digits_checkpoint: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(problem)):
        export_onnx(digits_checkpoint, tmp_path / "model.onnx", **options)

    assert list(tmp_path.iterdir()) == []


def test_export_from_python_overwrites_no_checkpoint(tmp_path: Path, digits_checkpoint: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(digits_checkpoint.read_bytes())

    with pytest.raises(InputError, match="an input of this run, which must not be overwritten"):
        export_onnx(path, path)

    assert path.read_bytes() == digits_checkpoint.read_bytes()
