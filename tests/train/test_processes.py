"""Several processes that torchrun started: they train the model that one would, and stop, fail and resume together."""

import json
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from rnn_train import DataSource
from rnn_train.checkpoint import Checkpoint
from tests.support import train_together
from tests.support.commands import installed
from tests.support.idx_files import write_idx_folder
from tests.support.processes import started_with_children, wait_until
from tests.support.torchrun import ROOT, errors, finish, run_together, started_together, worker
from tests.support.training import Recorder, resume

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the processes of torchrun are found by /proc"),
    pytest.mark.xdist_group("torchrun"),  # one at a time, since each starts some processes
]


def test_two_processes_train_what_one_does_and_one_can_go_on(tmp_path: Path) -> None:
    data = write_idx_folder(tmp_path / "data", train=60)
    source, program = DataSource(data=str(data)), ROOT / "tests" / "support" / "train_together.py"

    result = run_together(program, data, tmp_path, folder=tmp_path)

    assert result.returncode == 0, result.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    expected = train_together.compared(source, tmp_path / "alone")
    assert first["losses"].keys() == expected.keys()
    for name, losses in expected.items():
        # The sums of a batch are rounded in another order.
        assert first["losses"][name] == pytest.approx(losses, rel=1e-3), name
    assert second["losses"] == {name: [] for name in expected}  # only the first calls back
    assert first["weights"] == second["weights"]
    assert not set(first["random"]) & set(second["random"])
    # The signal comes to the first after step 2, and both learn of it in the next.
    stopped = _only_one_reports(first["stopped"], second["stopped"])
    assert stopped.startswith("terminated; ")
    assert "holds step 3 of 9 in epoch 2 of 2" in stopped
    assert _only_one_reports(first["diverged"], second["diverged"]).startswith("training diverged in epoch 1: ")
    assert first["resumed"] == pytest.approx(expected["rnn"][9 + 3 :], rel=1e-3)
    alone = Recorder()
    resume(tmp_path / "rnn" / "model.pt", epochs=3, callback=alone)
    assert alone.started == [(3, 9, 18)]


def _only_one_reports(one: str, other: str) -> str:
    """The error of the process that reports it, where the other says so."""
    reported, told = sorted([one, other], key=len)
    assert told == f"another process reports an error; here: {reported}"
    return reported


def test_only_the_first_process_prints_and_writes(tmp_path: Path) -> None:
    arguments = ("--dataset", "digits", "--val-split", "0.2", "--epochs", "1", "--tensorboard", "board", "--no-plots")

    result = run_together(*arguments, "--output", "two/model.pt", folder=tmp_path)

    assert result.returncode == 0, result.stderr
    for text in ("Epoch [1/1], Step [12/12], Loss: ", "Accuracy of the network on the 360 test images: "):
        assert result.stdout.count(text) == 1
    for text in ("2 processes share each batch, on cpu", "Wrote two/model.pt", "1,149 training"):
        assert result.stderr.count(text) == 1
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["metrics.csv", "model.pt"]
    assert len(list((tmp_path / "board").iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "rank", "what"),
    [
        (signal.SIGTERM, 1, "terminated"),
        (signal.SIGKILL, 0, "another process ended, or didn't answer for 2 minutes"),
    ],
)
def test_a_signal_to_any_process_ends_all_with_one_line(
    tmp_path: Path, number: signal.Signals, rank: int, what: str
) -> None:
    data = write_idx_folder(tmp_path / "data", train=60)
    options = ("--epochs", 100_000, "--batch-size", 16, "--hidden-size", 8, "--output", "run/model.pt")
    with started_together("--data", data, *options, folder=tmp_path) as started:
        wait_until((tmp_path / "run" / "metrics.csv").exists, started)
        os.kill(worker(started, rank), number)
        result = finish(started)

    assert result.returncode != 0
    (error,) = errors(result)
    assert error.startswith(f"Error: {what}; run/model.pt holds ")
    assert error.endswith(". Continue with --resume run/model.pt")
    assert Checkpoint.load(tmp_path / "run" / "model.pt").resume_state["epoch"] >= 1
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_machines_with_other_data_are_refused_with_one_line(tmp_path: Path) -> None:
    for rank in range(2):
        write_idx_folder(tmp_path / f"data{rank}", train=60, seed=rank)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port))

    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                started_together(
                    "--data",
                    f"data{rank}",
                    folder=tmp_path,
                    processes=1,
                    options=(*meeting, "--node-rank", str(rank)),
                )
            )
            for rank in range(2)
        ]
        results = [finish(run) for run in runs]

    assert all(result.returncode != 0 for result in results)
    (error,) = (error for result in results for error in errors(result))
    assert error.endswith(": process 1 reads other images or classes than process 0")
    assert not (tmp_path / "model.pt").exists()


def test_a_process_that_waits_for_others_can_be_stopped(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    meeting = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def is_waiting() -> bool:
        with socket.socket() as found:
            return found.connect_ex(("127.0.0.1", port)) == 0

    line = [installed("rnn-train"), "--dataset", "digits"]
    with started_with_children(line, tmp_path, ranks | meeting) as process:
        wait_until(is_waiting, process)
        process.terminate()
        _, stderr = process.communicate(timeout=60)

    assert process.returncode == 143
    assert stderr == "Error: terminated\n"
    assert list(tmp_path.iterdir()) == []
