"""`rnn-export` killed, stopped or out of disk: under the final name is a whole model, or what was there before."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rnn_runtime import Classifier
from tests.conftest import Run
from tests.support.processes import started, wait_until


def began_to_write(folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.glob(".model.onnx.*/model.onnx"))


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, digits_checkpoint: Path, run: Run
) -> None:
    run("rnn-export", digits_checkpoint, "model.onnx")
    new = (tmp_path / "model.onnx").read_bytes()
    old = b"the old model"
    moments = random.Random(0)
    found = []
    for _ in range(10):
        (tmp_path / "model.onnx").write_bytes(old)
        with started("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path) as process:
            wait_until(began_to_write(tmp_path), process)
            time.sleep(moments.uniform(0, 0.4))
        for left in tmp_path.glob(".model.onnx.*"):
            for file in left.iterdir():
                file.unlink()
            left.rmdir()
        found.append((tmp_path / "model.onnx").read_bytes())

    assert set(found) <= {old, new}
    assert old in found, "it was always done before it was killed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_a_line_and_leaves_nothing(
    tmp_path: Path, digits_checkpoint: Path, number: signal.Signals, code: int
) -> None:
    with started("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path) as process:
        wait_until(began_to_write(tmp_path), process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == code
    assert errors == ("Error: interrupted\n" if number == signal.SIGINT else "Error: terminated\n")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_it_in_a_line_and_leaves_the_old_model(
    tmp_path: Path, digits_checkpoint: Path, digits_model: Path
) -> None:
    old = digits_model.read_bytes()
    (tmp_path / "model.onnx").write_bytes(old)

    with started("rnn-export", digits_checkpoint, "model.onnx", folder=tmp_path, largest_file=len(old) // 2) as process:
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 2
    assert errors == "Error: model.onnx: can't be written: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == old
    assert Classifier(tmp_path / "model.onnx", provider="cpu")
