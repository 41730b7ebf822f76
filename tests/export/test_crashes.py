"""`rnn-export` killed, stopped or out of disk: under the final name is a whole model, or what was there before."""

import signal
from pathlib import Path

import pytest

from rnn_runtime import Classifier
from tests.support.commands import Run
from tests.support.file_stops import stopping
from tests.support.full_disk import full_disk

OLD = b"the old model"
LAST_CHANGE = "move model.onnx"


@pytest.mark.slow
def test_at_every_moment_the_old_model_or_the_new_one_is_there(tmp_path: Path, digits_checkpoint: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(OLD)
    changes, found = [], []

    with stopping("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path) as exporting:
        for change in exporting:
            changes.append(change)
            found.append((tmp_path / "model.onnx").read_bytes())
        _, errors = exporting.run_to_the_end()

    assert exporting.process.returncode == 0, errors
    new = (tmp_path / "model.onnx").read_bytes()
    before = changes.index(LAST_CHANGE) + 1
    assert found == [OLD] * before + [new] * (len(found) - before)
    assert changes[0].startswith("mkdir")
    assert Classifier(tmp_path / "model.onnx", provider="cpu")


@pytest.mark.slow
def test_killed_with_the_new_model_written_it_leaves_the_old_one(tmp_path: Path, digits_checkpoint: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(OLD)

    with stopping("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path) as exporting:
        exporting.go_to(LAST_CHANGE)
        exporting.process.kill()
        exporting.process.wait()

    assert (tmp_path / "model.onnx").read_bytes() == OLD


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "Error: interrupted\n"),
        pytest.param(signal.SIGTERM, 143, "Error: terminated\n", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_signal_ends_it_in_a_line_and_leaves_nothing(
    tmp_path: Path, digits_checkpoint: Path, number: signal.Signals, code: int, said: str
) -> None:
    with stopping("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path) as exporting:
        exporting.go_to(LAST_CHANGE)
        exporting.process.send_signal(number)
        _, errors = exporting.run_to_the_end()

    assert exporting.process.returncode == code
    assert errors == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_ends_it_in_a_line_and_leaves_the_old_model(
    run: Run, tmp_path: Path, digits_checkpoint: Path, digits_model: Path
) -> None:
    old = digits_model.read_bytes()
    (tmp_path / "model.onnx").write_bytes(old)

    with full_disk(largest_file=len(old) // 2):
        result = run("rnn-export", digits_checkpoint, "model.onnx")

    assert result.returncode == 2
    assert result.stderr == "Error: model.onnx: can't be written: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == old
    assert Classifier(tmp_path / "model.onnx", provider="cpu")
