"""Images of 16 bits that use a small range: from training to serving, one meaning."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rnn_runtime import Classifier
from rnn_train.checkpoint import Checkpoint
from tests.support.commands import Run
from tests.support.results import read_results

TRAINING = (
    "--data",
    "photos",
    "--image-size",
    "8",
    "--epochs",
    "8",
    "--learning-rate",
    "0.01",
    "--batch-size",
    "4",
    "--no-plots",
)


@pytest.fixture
def microscope(tmp_path: Path) -> Path:
    """A folder `photos` of images of a sensor of 12 bits, as files of 16: bright at the left, or at the right."""
    generator = np.random.default_rng(0)
    for name, columns in (("left", slice(16)), ("right", slice(16, 32))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            values = generator.integers(100, 140, (40, 32), np.uint16)
            values[:, columns] += generator.integers(400, 600, (40, 16), np.uint16)
            values[0, 0] = 65_535 if i == 3 else values[0, 0]  # a broken pixel among 1,280
            Image.fromarray(values).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_images_that_would_be_black_are_refused_with_the_way_out(run: Run, microscope: Path) -> None:
    result = run("rnn-train", *TRAINING)

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert f"{microscope.name}/left/0.png: its values are from 100 to" in result.stderr
    assert "Choose a depth range in training: rnn-train --depth-range auto" in result.stderr


@pytest.mark.usefixtures("microscope")
@pytest.mark.parametrize(("option", "expected"), [("auto", None), ("64-1023", (64, 1023))])
def test_the_range_of_training_is_that_of_serving(
    run: Run, tmp_path: Path, option: str, expected: tuple[int, int] | None
) -> None:
    trained = run("rnn-train", *TRAINING, "--depth-range", option)
    exported = run("rnn-export", "model.pt", "model.onnx")
    served = run("rnn-infer", "--recursive", "--labels-from-folders", "--output", "out.csv", "photos")

    assert (trained.returncode, exported.returncode, served.returncode) == (0, 0, 0), trained.stderr + exported.stderr
    found = Checkpoint.load(tmp_path / "model.pt").spec.image_spec.depth_range
    assert found is not None
    if expected:
        assert found == expected
    else:
        assert 100 <= found[0] < 140
        assert 700 < found[1] < 740
        assert (
            f"Of images with more than 8 bits per pixel, the values from {found[0]} to {found[1]} become 0 to 255"
            in (trained.stderr)
        )
    assert Classifier(tmp_path / "model.onnx").metadata.spec.image_spec.depth_range == found
    rows = read_results(tmp_path / "out.csv")
    assert len(rows) == 24
    assert all(row["label"] == row["true_label"] for row in rows)


@pytest.mark.usefixtures("microscope")
def test_a_run_with_a_range_that_was_found_is_resumed(run: Run, tmp_path: Path) -> None:
    line = ("rnn-train", *TRAINING, "--depth-range", "auto", "--resume", "auto")
    assert run(*line).returncode == 0
    before = Checkpoint.load(tmp_path / "model.pt")

    longer = run(*line, "--epochs", "9")
    other = run("rnn-train", *TRAINING, "--depth-range", "0-4095", "--resume", "auto")

    assert longer.returncode == 0, longer.stderr
    assert Checkpoint.load(tmp_path / "model.pt").spec == before.spec
    assert other.returncode == 2
    assert "--depth-range 0-4095: model.pt was trained with --depth-range auto" in other.stderr


def test_a_range_can_only_be_found_in_folders_of_images(run: Run) -> None:
    result = run("rnn-train", "--dataset", "digits", "--depth-range", "auto")

    assert result.returncode == 2
    assert (
        "a depth range can only be found in folders of images. Leave out --depth-range, or add --data" in result.stderr
    )


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("wide", "--depth-range must be full, auto or the values of black and white, such as 0-4095, not 'wide'"),
        ("9-5", "--depth-range must go from a smaller value to a larger one, not 9 to 5"),
        ("0-65536", "--depth-range must have values from -32768 to 65535, not '0-65536'"),
        ("-10--5", "--depth-range must hold 17 values or more, one for each gray that is left, not '-10--5'"),
    ],
)
def test_a_range_that_cannot_be_is_named(run: Run, value: str, problem: str) -> None:
    result = run("rnn-train", "--data", "photos", "--depth-range", value)

    assert result.returncode == 2
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("microscope")
def test_negative_values_can_be_given(run: Run, tmp_path: Path) -> None:
    result = run("rnn-train", *TRAINING, "--epochs", "1", "--depth-range", "-1000-3000")

    assert result.returncode == 0, result.stderr
    assert Checkpoint.load(tmp_path / "model.pt").spec.image_spec.depth_range == (-1000, 3000)


@pytest.mark.usefixtures("microscope")
def test_images_of_16_bits_in_another_split_get_a_remedy_beside_auto(run: Run, tmp_path: Path) -> None:
    shutil.move(tmp_path / "photos", tmp_path / "deep")
    for folder in ("left", "right"):
        (tmp_path / "photos/train" / folder).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (32, 40), 60 * i).save(tmp_path / "photos/train" / folder / f"{i}.png")
    shutil.copytree(tmp_path / "deep", tmp_path / "photos/val")

    auto = run("rnn-train", *TRAINING, "--depth-range", "auto")
    chosen = run("rnn-train", *TRAINING, "--depth-range", "0-4095", "--epochs", "1")

    assert auto.returncode == 2
    assert "rnn-train --depth-range auto, or two values such as 0-4095. Repair or remove them" in auto.stderr
    assert chosen.returncode == 0, chosen.stderr


@pytest.mark.usefixtures("microscope")
def test_images_beyond_the_range_are_refused_in_training_and_inference(run: Run, tmp_path: Path) -> None:
    refused = run("rnn-train", *TRAINING, "--depth-range", "-1000--900")

    assert refused.returncode == 2
    assert "24 of 24 images can't be read, the first: photos/left/0.png: all its values, from 1" in refused.stderr
    assert "are beyond the depth range -1000--900. Choose a range in training that holds them" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    assert run("rnn-train", *TRAINING, "--epochs", "1", "--depth-range", "100-799").returncode == 0
    assert run("rnn-export", "model.pt", "model.onnx").returncode == 0
    Image.fromarray(np.full((40, 32), 900, np.uint16)).save(tmp_path / "bright.png")
    result = run("rnn-infer", "bright.png", "photos/left/0.png", "--output", "out.csv")

    assert result.returncode == 1
    bright, usual = read_results(tmp_path / "out.csv")
    assert bright["error"].startswith("all its values, from 900 to 900, are beyond the depth range 100-799. Choose a")
    assert usual["label"]
