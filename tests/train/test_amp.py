"""Training in bfloat16: it learns as float32 does, and everything outside of a step's products stays float32."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from rnn_export import export_onnx
from rnn_runtime import Classifier
from rnn_runtime.model.difference import Difference
from rnn_runtime.model.spec import Cell, ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings, train
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import load_data
from rnn_train.model import ImageRNN, predict_logits
from tests.support.commands import Run, RunProcess
from tests.support.training import LSTM_IN_BFLOAT16, Recorder, assert_equal, resume, train_quietly

DIGITS = DataSource(dataset="digits", val_split=0.2)
SMALL = TrainSettings(hidden_size=8, learning_rate=0.01, amp=True)
LEARNING = TrainSettings(hidden_size=32, learning_rate=0.01, epochs=12, batch_size=50, amp=True)
CELLS = pytest.mark.parametrize("cell", ["rnn", "gru", pytest.param("lstm", marks=LSTM_IN_BFLOAT16)])
NOTE = "bfloat16 is for CUDA. On CPUs, training is usually faster in float32"


@CELLS
@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(tmp_path: Path, cell: Cell) -> None:
    settings = replace(LEARNING, cell=cell)

    found = train_quietly(tmp_path / "amp.pt", DIGITS, settings).accuracy
    expected = train_quietly(tmp_path / "model.pt", DIGITS, replace(settings, amp=False)).accuracy

    assert found is not None
    assert expected is not None
    assert found > 0.8  # chance is 0.1
    assert abs(found - expected) < 0.1


@CELLS
def test_steps_are_rounded_to_bfloat16_and_what_is_kept_is_float32(tmp_path: Path, cell: Cell) -> None:
    settings = replace(SMALL, cell=cell)
    plain = train_quietly(tmp_path / "plain.pt", DIGITS, replace(settings, amp=False)).checkpoint

    train_quietly(tmp_path / "model.pt", DIGITS, settings)

    saved = Checkpoint.load(tmp_path / "model.pt")
    state = saved.resume_state
    moments = [tensor for one in state["optimizer"].values() for tensor in one.values()]
    for tensor in (*saved.weights.values(), *state["weights"].values(), *moments):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    assert not torch.equal(saved.weights["rnn.weight_hh_l0"], plain.weights["rnn.weight_hh_l0"])
    assert saved.settings == settings


@pytest.mark.parametrize(("cell", "bidirectional"), [("rnn", False), ("gru", False), ("gru", True)])
def test_torchs_own_modules_compute_under_autocast(cell: Cell, bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = ImageRNN(ModelSpec(ImageSpec(8, 8, 1), ("a", "b"), cell, hidden_size=16, bidirectional=bidirectional))
    images = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)

    with torch.autocast("cpu", torch.bfloat16):
        training, evaluating = model.train()(images), model.eval()(images)
    training.float().sum().backward()

    assert training.dtype == torch.bfloat16
    assert torch.equal(training, evaluating)
    assert {weight.grad.dtype for weight in model.parameters() if weight.grad is not None} == {torch.float32}


def test_evaluation_during_and_after_training_is_in_float32(tmp_path: Path) -> None:
    result = train_quietly(tmp_path / "model.pt", DIGITS, replace(SMALL, epochs=1))

    saved, data = result.checkpoint, load_data(DIGITS)
    assert data.validation is not None
    logits = torch.from_numpy(predict_logits(saved.build_model(), data.validation.images))
    loss = cross_entropy(logits, torch.from_numpy(data.validation.labels)).item()
    # bfloat16 would round each logit by up to 0.4 %
    assert saved.metrics["epochs"][0]["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_an_export_of_a_run_in_bfloat16_agrees_with_pytorch(tmp_path: Path) -> None:
    saved = train_quietly(tmp_path / "model.pt", DIGITS, replace(SMALL, cell="gru")).checkpoint

    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")  # raises beyond the tolerances

    images = saved.samples.numpy()
    logits = Classifier(tmp_path / "model.onnx", provider="cpu").predict_logits(images)
    assert Difference.between(logits, predict_logits(saved.build_model(), images)).within_tolerance


def test_on_a_cpu_a_note_says_that_float32_is_faster(tmp_path: Path) -> None:
    notes = {}
    for amp in (True, False):
        recorder = Recorder()
        train_quietly(tmp_path / "model.pt", DIGITS, replace(SMALL, amp=amp), callback=recorder)
        notes[amp] = recorder.notes.count(NOTE)

    assert notes == {True: 1, False: 0}


def test_a_complete_run_needs_no_note(tmp_path: Path) -> None:
    recorder = Recorder()
    train_quietly(tmp_path / "model.pt", DIGITS, SMALL)

    resume(tmp_path / "model.pt", callback=recorder)

    assert NOTE not in recorder.notes


LINE = ("--dataset", "digits", "--hidden-size", "8", "--epochs", "1", "--device", "cpu", "--no-plots")


def test_the_command_trains_in_bfloat16_and_notes_it_in_one_line(tmp_path: Path, run: Run) -> None:
    result = run("rnn-train", "--amp", *LINE)

    assert result.returncode == 0
    assert result.stderr.count("bfloat16 is for CUDA. On CPUs, training is usually faster in float32\n") == 1
    assert Checkpoint.load(tmp_path / "model.pt").settings.amp


@pytest.mark.parametrize(
    ("first", "then", "problem"),
    [
        (["--amp"], ["--resume", "auto"], "--no-amp: model.pt was trained with --amp. "),
        (["--amp"], ["--resume", "model.pt", "--no-amp"], "--no-amp: model.pt was trained with --amp. "),
        ([], ["--resume", "auto", "--amp"], "--amp: model.pt was trained with --no-amp. "),
    ],
)
def test_a_run_goes_on_in_the_precision_it_was_started_with(
    tmp_path: Path, run: Run, first: list[str], then: list[str], problem: str
) -> None:
    run("rnn-train", *first, *LINE)
    before = (tmp_path / "model.pt").read_bytes()

    result = run("rnn-train", *then, *LINE)

    assert result.returncode == 2
    assert result.stderr.startswith(f"Error: {problem}")
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "model.pt").read_bytes() == before


def test_resume_keeps_the_precision_without_being_told(tmp_path: Path, run: Run) -> None:
    run("rnn-train", "--amp", *LINE)

    result = run("rnn-train", "--resume", "model.pt", "--epochs", "2", "--device", "cpu", "--no-plots")
    run("rnn-train", "--amp", *LINE, "--epochs", "2", "--output", "whole.pt")

    assert result.returncode == 0
    resumed, whole = (Checkpoint.load(tmp_path / name) for name in ("model.pt", "whole.pt"))
    assert resumed.settings.amp
    assert_equal(resumed.weights, whole.weights)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN can be held back on x86 only")
def test_a_processor_without_lstms_in_bfloat16_is_named_before_training(
    tmp_path: Path, run_process: RunProcess
) -> None:
    result = run_process("rnn-train", "--amp", "--cell", "lstm", *LINE, env={"ONEDNN_MAX_CPU_ISA": "AVX2"})

    assert result.returncode == 3
    assert result.stderr == (
        "Error: torch has no LSTM in bfloat16 for this processor (on x86, it needs AVX-512). Train without --amp, or "
        "on a GPU\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_bfloat16_learns_on_a_gpu(tmp_path: Path) -> None:
    result = train(DIGITS, LEARNING, tmp_path / "model.pt", device="cuda", plots=False)

    assert result.accuracy is not None
    assert result.accuracy > 0.8
    assert {weight.dtype for weight in result.checkpoint.weights.values()} == {torch.float32}
