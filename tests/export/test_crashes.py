"""`rnn-export` killed, stopped or out of disk: under the final name is a whole model, or what was there before."""

import signal
from pathlib import Path

import pytest

from rnn_runtime import Classifier
from rnn_runtime.model.file import check_model
from tests.support.commands import Run
from tests.support.file_stops import stopping
from tests.support.full_disk import full_disk

OLD = b"the old model"


@pytest.mark.slow
def test_until_the_new_model_is_complete_the_old_one_is_there(tmp_path: Path, digits_checkpoint: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(OLD)

    with stopping("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path) as exporting:
        for change in exporting:
            assert (tmp_path / "model.onnx").read_bytes() == OLD
            if change == "move model.onnx":
                break
        exporting.process.kill()
        exporting.process.wait()

    assert (tmp_path / "model.onnx").read_bytes() == OLD
    (temporary,) = set(tmp_path.iterdir()) - {tmp_path / "model.onnx"}
    check_model(temporary.read_bytes())


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "Error: interrupted\n"), (signal.SIGTERM, 143, "Error: terminated\n")],
)
@pytest.mark.slow
def test_a_signal_ends_it_in_a_line_and_leaves_nothing(
    tmp_path: Path, digits_checkpoint: Path, number: signal.Signals, code: int, said: str
) -> None:
    with stopping("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path) as exporting:
        next(exporting)  # it opens its temporary file
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
