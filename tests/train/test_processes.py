"""Several processes that torchrun started: they train the model that one would, and stop, fail and resume together."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rnn_runtime.interruption import SIGNALS
from rnn_train import DataSource
from rnn_train.checkpoint import Checkpoint
from tests.support import train_together
from tests.support.commands import Run
from tests.support.idx_files import write_idx_folder
from tests.support.processes import descendants, wait_until
from tests.support.torchrun import (
    ROOT,
    errors,
    finish,
    run_together,
    started_together,
    worker,
)
from tests.support.training import assert_same_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the processes of torchrun are found by /proc"),
    pytest.mark.xdist_group("torchrun"),  # one at a time, since each starts some processes
]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """The data and the folder of what `train_together` did with two processes, and what each of them saw."""
    folder = tmp_path_factory.mktemp("together")
    data = write_idx_folder(folder / "data", train=60)
    program = ROOT / "tests" / "support" / "train_together.py"
    result = run_together(program, data, folder, folder=folder)
    assert result.returncode == 0, result.stderr
    return data, folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_have_the_losses_of_one(
    together: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    data, _, (first, second) = together

    expected = train_together.compared(DataSource(data=str(data)), tmp_path)

    assert first["losses"].keys() == expected.keys()
    for name, losses in expected.items():
        # The sums of a batch are rounded in another order.
        assert first["losses"][name] == pytest.approx(losses, rel=1e-3), name
    assert second["losses"] == {name: [] for name in expected}  # only the first calls back


def test_a_run_that_is_stopped_and_resumed_ends_as_one_without_a_stop(
    together: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    _, folder, (first, second) = together

    assert first["stopped"].startswith("terminated; ")
    assert "holds step 3 of 4 in epoch 2 of 2" in first["stopped"]  # the signal comes after step 2
    assert second["stopped"] == first["stopped"]
    whole, stopped = (Checkpoint.load(folder / name / "model.pt") for name in ("whole", "stopped"))
    assert len(whole.resume_state["other_processes"]) == 1
    assert_same_run(stopped, whole)


def test_processes_begin_with_the_same_weights_and_different_random_numbers(
    together: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    _, _, found = together
    first, second = (one["state"] for one in found)

    assert first["weights"] == second["weights"]
    assert not set(first["random"]) & set(second["random"])
    assert [first["launch"], second["launch"]] == [[0, 2, 0, 2], [1, 2, 1, 2]]


def test_only_the_first_process_prints(tmp_path: Path, run: Run) -> None:
    arguments = ("--dataset", "digits", "--val-split", "0.2", "--epochs", "1", "--tensorboard", "board", "--no-plots")

    result = run_together(*arguments, "--output", "two/model.pt", folder=tmp_path)

    assert result.returncode == 0, result.stderr
    for text in ("Epoch [1/1], Step [12/12], Loss: ", "Accuracy of the network on the 360 test images: "):
        assert result.stdout.count(text) == 1
    for text in ("2 processes share each batch, on cpu", "Wrote two/model.pt", "1,149 training"):
        assert result.stderr.count(text) == 1
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["metrics.csv", "model.pt"]
    assert len(list((tmp_path / "board").iterdir())) == 1
    one = run("rnn-train", *arguments[:6], "--no-plots", "--output", "one/model.pt", env={"OMP_NUM_THREADS": "1"})
    assert one.returncode == 0
    ours, theirs = (Checkpoint.load(tmp_path / name / "model.pt").metrics for name in ("two", "one"))
    assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.02)
    assert ours["epochs"][0]["validation_loss"] == pytest.approx(theirs["epochs"][0]["validation_loss"], rel=1e-2)


def test_processes_train_in_bfloat16_together(tmp_path: Path) -> None:
    line = ("--dataset", "digits", "--amp", "--device", "cpu", "--no-plots", "--resume", "auto", "--epochs")
    whole, first, resumed = (
        run_together(*line, epochs, "--output", output, folder=tmp_path)
        for output, epochs in (("whole.pt", 2), ("model.pt", 1), ("model.pt", 2))
    )

    for result in (whole, first, resumed):
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("--amp is for CUDA. On CPUs, training is usually faster in float32") == 1
    assert Checkpoint.load(tmp_path / "whole.pt").settings.amp
    assert_same_run(Checkpoint.load(tmp_path / "model.pt"), Checkpoint.load(tmp_path / "whole.pt"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_any_process_ends_all(tmp_path: Path, rank: int, number: signal.Signals) -> None:
    data = write_idx_folder(tmp_path / "data", train=60)
    arguments = (
        "--data",
        data,
        "--epochs",
        100_000,
        "--batch-size",
        16,
        "--hidden-size",
        8,
        "--output",
        "run/model.pt",
    )
    with started_together(*arguments, folder=tmp_path) as started:
        wait_until((tmp_path / "run" / "metrics.csv").exists, started)

        os.kill(worker(started, rank), number)
        result = finish(started)

    assert result.returncode != 0
    (error,) = errors(result)
    what = "terminated; " if number == signal.SIGTERM else "another process ended, or didn't answer for 2 minutes; "
    assert error.startswith(f"Error: {what}run/model.pt holds ")
    assert error.endswith(". Continue with --resume run/model.pt")
    saved = Checkpoint.load(tmp_path / "run" / "model.pt")
    assert saved.resume_state["epoch"] >= 1
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_them_and_torchrun_lets_the_step_finish(tmp_path: Path, number: signal.Signals) -> None:
    data = write_idx_folder(tmp_path / "data", train=60)
    line = ("--data", data, "--epochs", 100_000, "--batch-size", 2, "--hidden-size", 8, "--output", "run/model.pt")
    with started_together(*line, folder=tmp_path) as started:
        wait_until((tmp_path / "run" / "metrics.csv").exists, started)

        for pid in (started.pid, worker(started, 0), worker(started, 1)):
            os.kill(pid, number)
        result = finish(started)

    (error,) = errors(result)
    assert error.startswith(f"Error: {SIGNALS[number]}; run/model.pt holds ")


def test_a_run_is_resumed_by_as_many_processes_only(tmp_path: Path, run: Run) -> None:
    arguments = ("--dataset", "digits", "--no-plots", "--output", "run/model.pt", "--resume", "auto", "--epochs")
    assert run_together(*arguments, 1, folder=tmp_path).returncode == 0
    before = (tmp_path / "run" / "model.pt").read_bytes()

    alone = run("rnn-train", *arguments, 2)
    three = run_together(*arguments, 2, folder=tmp_path, processes=3)

    assert alone.returncode == 2
    assert alone.stderr == (
        "Error: run/model.pt: trained by 2 processes, and can't be continued by 1. "
        "Continue with 2 processes: torchrun --nproc-per-node 2\n"
    )
    assert errors(three) == [alone.stderr.strip().replace("by 1.", "by 3.")]
    assert (tmp_path / "run" / "model.pt").read_bytes() == before
    resumed = run_together(*arguments, 2, folder=tmp_path)
    assert resumed.returncode == 0
    assert "run/model.pt: continuing after 1 of 2 epochs" in resumed.stderr
    one = run("rnn-train", *arguments[:3], "--output", "one/model.pt", "--epochs", 1)
    assert one.returncode == 0
    with_two = run_together("--resume", "one/model.pt", "--epochs", 2, folder=tmp_path)
    assert errors(with_two) == [
        "Error: one/model.pt: trained by 1 process, and can't be continued by 2. "
        "Continue in one process, without torchrun"
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--data", "nowhere"), "nowhere: no such folder. Point --data to"),
        (("--epochs", "x"), "Invalid value for '--epochs': 'x' is not a valid integer range"),
        (("--dataset", "digits", "--batch-size", 1), "--batch-size 1 is less than one image for each of 2 processes"),
        (("--dataset", "digits", "--device", "cuda"), "torch finds no CUDA device here"),
        (("--resume", "nothing.pt"), "nothing.pt: no such file"),
        (("--dataset", "digits", "--learning-rate", 1e30), "training diverged in epoch 1"),
    ],
)
def test_an_error_of_all_processes_is_reported_once(tmp_path: Path, arguments: tuple[object, ...], error: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        arguments, error = ("--data", "nowhere"), "nowhere"

    result = run_together(*arguments, folder=tmp_path)

    assert result.returncode != 0
    (found,) = errors(result)
    assert found.startswith(f"Error: {error}")


def run_on_two_machines(tmp_path: Path, *options: tuple[object, ...]) -> list[Any]:
    """Two torchruns of one process each, as on two machines, each with its own options."""
    with started_on_two_machines(tmp_path, *options) as runs:
        return [finish(one) for one in runs]


@contextmanager
def started_on_two_machines(tmp_path: Path, *options: tuple[object, ...]) -> Iterator[list[Any]]:
    """Start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port))
    with ExitStack() as stack:
        runs = []
        for rank, own in enumerate(options):
            run = started_together(*own, folder=tmp_path, processes=1, options=(*meeting, "--node-rank", str(rank)))
            runs.append(stack.enter_context(run))
        yield runs


IMPATIENT = """
import datetime, sys
import rnn_train.processes
from rnn_train.cli import main

rnn_train.processes._MEETING = datetime.timedelta(seconds=30)
main()
"""


def test_others_that_do_not_come_are_waited_for_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "impatient.py").write_text(IMPATIENT)

    left, mistaken = run_on_two_machines(tmp_path, ("impatient.py", "--dataset", "digits"), ("--outptu",))

    assert any("No such option '--outptu'" in error for error in errors(mistaken)), mistaken.stderr
    (error,) = errors(left)
    assert error.startswith("Error: the other processes that torchrun started didn't come within ")
    assert left.returncode != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_others_can_be_stopped(tmp_path: Path, number: signal.Signals) -> None:
    with started_on_two_machines(tmp_path, ("--dataset", "digits"), ("--outptu",)) as (first, second):
        finish(second)
        wait_until(lambda: len(descendants(first.pid)) > 0, first)
        time.sleep(5)  # until it has imported torch, and waits
        first.send_signal(number)
        _, stderr = first.communicate(timeout=25)  # torchrun kills after 30 s

    assert f"Error: {SIGNALS[number]}\n" in stderr


def test_two_machines_train_together_and_the_first_writes(tmp_path: Path) -> None:
    for name in ("here", "there"):
        write_idx_folder(tmp_path / name / "data", train=60)
    common = ("--epochs", 2, "--batch-size", 16, "--hidden-size", 8, "--no-plots")

    first, second = run_on_two_machines(
        tmp_path,
        ("--data", "here/data", "--output", "here/model.pt", *common),
        ("--data", "there/data", "--output", "there/model.pt", *common),
    )

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "Accuracy of the network on the 20 test images" in first.stdout
    assert second.stdout == ""
    assert Checkpoint.load(tmp_path / "here" / "model.pt").resume_state["epoch"] == 2
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("train", "seed", "hidden_size", "error"),
    [
        (60, 1, 8, "Error: process 1: data1: other images or classes than those that process 0 reads"),
        (61, 0, 8, "Error: process 1: data1: other images or classes than those that process 0 reads"),
        (
            60,
            0,
            16,
            "Error: process 1 was started with --hidden-size 16, and process 0 with --hidden-size 8. "
            "Start all with the same options",
        ),
    ],
)
def test_machines_with_other_data_or_options_are_refused(
    tmp_path: Path, train: int, seed: int, hidden_size: int, error: str
) -> None:
    write_idx_folder(tmp_path / "data0", train=60)
    write_idx_folder(tmp_path / "data1", train=train, seed=seed)

    results = run_on_two_machines(
        tmp_path, ("--data", "data0", "--hidden-size", 8), ("--data", "data1", "--hidden-size", hidden_size)
    )

    assert all(result.returncode != 0 for result in results)
    assert [errors(result) for result in results] == [[error], []]
    assert not (tmp_path / "model.pt").exists()
