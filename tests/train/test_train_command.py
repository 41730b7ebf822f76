"""`rnn-train`: what it prints, writes and refuses."""

import csv
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from rnn_train.checkpoint import Checkpoint
from rnn_train.data import DataSource
from rnn_train.settings import TrainSettings, preset_settings
from tests.support.commands import Run, RunProcess
from tests.support.idx_files import idx_bytes, write_idx_folder
from tests.support.image_folders import write_classes

REPORTS = {"metrics.csv", "examples.png", "report.html"}
QUICK = ("--epochs", "1", "--hidden-size", "8", "--no-plots")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
def test_training_prints_the_articles_lines(run: Run, tmp_path: Path) -> None:
    result = run("rnn-train", "--dataset", "digits", "--epochs", "2")

    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"Epoch \[1/2\], Step \[15/15\], Loss: \d\.\d{4} \(mean of the epoch\)", lines[0])
    assert re.fullmatch(r"Epoch \[2/2\], Step \[15/15\], Loss: \d\.\d{4} \(mean of the epoch\)", lines[1])
    assert re.match(r"Balanced accuracy: \d", next(line for line in lines[2:] if line.startswith("Balanced")))
    assert re.fullmatch(r"Accuracy of the network on the 360 test images: \d{1,3}\.\d %", lines[-1])
    data, wrote = result.stderr.splitlines()
    assert data == "digits: 1,437 training, 360 test images of 8x8, gray, 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert wrote == "Wrote model.pt"
    assert names(tmp_path) == {"model.pt"} | REPORTS
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_defaults_are_the_articles(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")

    result = run("rnn-train", "--data", "data", "--no-plots")

    assert result.returncode == 0, result.stderr
    saved = Checkpoint.load(tmp_path / "model.pt")
    assert saved.settings == TrainSettings()
    assert saved.source == DataSource(data="data")
    spec = saved.spec
    assert (spec.cell, spec.nonlinearity, spec.hidden_size, spec.num_layers) == ("rnn", "tanh", 128, 2)
    assert (spec.bidirectional, spec.dropout, spec.mean, spec.std) == (False, 0.0, (0.0,), (1.0,))


def test_resume_goes_on_from_the_checkpoint(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    assert run("rnn-train", "--data", "data", *QUICK).returncode == 0

    result = run("rnn-train", "--resume", "model.pt", "--epochs", "3", "--no-plots")

    assert result.returncode == 0, result.stderr
    assert re.findall(r"Epoch \[(\d)/3\]", result.stdout) == ["2", "3"]
    assert result.stderr.endswith("Wrote model.pt\n")
    assert [row["epoch"] for row in Checkpoint.load(tmp_path / "model.pt").metrics["epochs"]] == [1, 2, 3]


def test_a_failed_download_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the port discard: nothing listens there, so this fails the same with and without network
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])

    result = run("rnn-train")

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: mnist: could not be downloaded")
    assert result.stdout == ""
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--resume model.pt", "Error: model.pt: not a checkpoint"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, arguments: str, error: str) -> None:
    # torch.load warns of such a file, and this must not be seen
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"weights": 1}))

    result = run("rnn-train", *arguments.split())

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith(error)
    assert result.stdout == ""
    assert names(tmp_path) == {"model.pt"}


def test_help_is_there_without_torch_or_numpy(run_process: RunProcess) -> None:
    code = """
import sys
from rnn_train.cli import main
main.main(["--help"], standalone_mode=False)
print(sorted({"torch", "numpy", "torchvision", "sklearn", "matplotlib", "PIL"} & set(sys.modules)))
"""
    result = run_process("python", "-c", code)

    assert result.returncode == 0, result.stderr
    assert "Train a recurrent image classifier" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--data gone", "Error: gone: no such folder"),
        ("--data empty", "Error: empty: no folders in it"),
        ("--data file", "Error: file: not a folder"),
        ("--data data --class-names a,b", "Error: data: labels go up to 3"),
        ("--data data --class-names a,,b,c", "Error: class names must be non-empty"),
        ("--data data --class-names a,a,b,c", "Error: class names must differ"),
        ("--data data --channels 3", "Leave out --channels"),
        ("--data data --image-size 0", "Error: --image-size must be"),
        ("--data data --image-size 100000", "Error: --image-size must be"),
        ("--data data --val-split 0.001", "Error: data: --val-split 0.001 of 40 images can't be held out"),
        ("--data data --val-split nan", "Error: --val-split must be"),
        ("--data data --dropout nan", "Error: --dropout must be"),
        ("--data data --learning-rate inf", "Error: --learning-rate must be"),
        ("--data data --learning-rate nan", "Error: --learning-rate must be"),
        ("--data data --cell lstm --nonlinearity relu", "Error: --nonlinearity is only for the cell rnn, not lstm"),
        ("--data data --patience 3", "Error: --patience needs validation images. Hold some out with --val-split 0.2"),
        (
            "--data data --val-split 0.5 --patience 3 --preset accurate",
            "Choose --schedule constant, or leave out --patience",
        ),
        ("--data data --weight-decay nan", "Error: --weight-decay must be"),
        ("--data data --hidden-size 1000000", "Error: --hidden-size must be"),
        ("--data data --seed 99999999999999999999", "Error: --seed must be"),
        ("--data data --output file/model.pt", "Error: file: model.pt can't be written to this folder: "),
        ("--data gone --output new/runs/model.pt", "Error: gone: no such folder"),
        ("--data data --shift 100 --output new/model.pt", "Error: --shift must be"),
        ("--resume new/model.pt", "Error: new/model.pt: no such file"),
        ("--dataset digits --data data", "Leave out --data"),
        ("--dataset digits --class-names a,b", "Error: class names are for data whose classes"),
        ("--dataset digits --channels 1", "Error: channels can only be chosen"),
        ("--data photos --class-names a,b", "Error: photos: no IDX files here"),
        ("--data photos --dataset mnist", "Error: photos: no IDX files here"),
        ("--resume gone.pt", "Error: gone.pt: no such file"),
        ("--resume data", "Error: data: a folder"),
        ("--resume file", "Error: file: not a checkpoint"),
        ("--resume pickle", "Error: pickle: not a checkpoint"),
        ("--resume gone.pt --data data", "Error: gone.pt: no such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    run: Run, tmp_path: Path, arguments: str, problem: str
) -> None:
    write_idx_folder(tmp_path / "data")
    write_classes(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "pickle").write_bytes(b"\x80\x04K\x01.")
    before = names(tmp_path)

    result = run("rnn-train", *arguments.split())

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert problem in result.stderr
    assert result.stdout == ""
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("--dataset MNIST", "Did you mean mnist?"),
        ("--dataset fashion_mnist", "Did you mean fashion-mnist?"),
        ("--image-size 64 48", "Did you mean --image-size 64x48?"),
    ],
)
def test_a_value_that_is_spelled_otherwise_gets_a_hint(run: Run, arguments: str, meant: str) -> None:
    result = run("rnn-train", *arguments.split())

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert meant in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--dataset cifar10", "--dataset"),
        ("--image-size large", "'large' is not a size"),
        ("--image-size 12x", "'12x' is not a size"),
        ("--image-size -5", "'-5' is not a size"),
        ("--val-split 1", "--val-split"),
        ("--epochs 0", "--epochs"),
        ("--epochs 1.5", "--epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--hidden-size -1", "--hidden-size"),
        ("--learning-rate 0", "--learning-rate"),
        ("--dropout 1", "--dropout"),
        ("--cell transformer", "--cell"),
        ("--device tpu", "--device"),
        ("--output folder", "--output"),
        ("--nesterov 0.9", "--nesterov"),
        ("--dataset emnist", "emnist-letters has letters, emnist-balanced digits and letters"),
        ("--val-split 20", "20 % is 0.2"),
        ("--val-split 12.5%", "12.5 % is 0.125"),
        ("--device cuda:1", "Choose a GPU by its number: CUDA_VISIBLE_DEVICES=1 rnn-train --device cuda"),
        ("--device gpu", "GPUs of NVIDIA are cuda"),
        ("--output runs/", "--output runs/ is a folder. Name a file in it: runs/model.pt"),
        ("--data https://example.com/a.zip", "nothing is downloaded from a web site. Download and unpack it first"),
    ],
)
def test_a_typing_mistake_is_told_in_one_line(run: Run, tmp_path: Path, arguments: str, named: str) -> None:
    (tmp_path / "folder").mkdir()

    result = run("rnn-train", *arguments.split())

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr
    assert result.stderr.endswith("; all options: rnn-train --help\n")
    assert names(tmp_path) == {"folder"}


def test_options_reach_the_settings(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    options = (
        "--cell rnn --nonlinearity relu --hidden-size 6 --num-layers 3 --bidirectional --dropout 0.25 --epochs 1 "
        "--batch-size 8 --learning-rate 0.02 --schedule one-cycle --weight-decay 0.5 --clip-norm 2 "
        "--label-smoothing 0.125 --class-weights balanced --amp --normalize --shift 2 --flip --seed 9 "
        "--augment rotation,color --image-size 5x4 --val-split 0.25 "
        "--class-names ant,bee,cat,dog --output out/run.pt --device cpu --no-plots"
    )

    result = run("rnn-train", "--data", "data", *options.split())

    assert result.returncode == 0, result.stderr
    saved = Checkpoint.load(tmp_path / "out" / "run.pt")
    assert saved.settings == TrainSettings(
        cell="rnn",
        nonlinearity="relu",
        hidden_size=6,
        num_layers=3,
        bidirectional=True,
        dropout=0.25,
        epochs=1,
        batch_size=8,
        learning_rate=0.02,
        schedule="one-cycle",
        weight_decay=0.5,
        clip_norm=2.0,
        label_smoothing=0.125,
        class_weights="balanced",
        amp=True,
        normalize=True,
        shift=2,
        flip=True,
        augment=("rotation", "color"),
        seed=9,
    )
    assert saved.source == DataSource(
        data="data", class_names=("ant", "bee", "cat", "dog"), image_size=(5, 4), val_split=0.25, split_seed=9
    )
    assert names(tmp_path / "out") == {"run.pt", "metrics.csv"}


def test_patience_stops_early_and_can_be_raised(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=10)
    # Steps too small to change a prediction: no epoch is better than the first.
    options = ("--val-split", "0.2", "--learning-rate", "1e-12", "--epochs", "9", "--hidden-size", "8", "--no-plots")

    stopped = run("rnn-train", "--data", "photos", "--patience", "2", *options)
    resumed = run("rnn-train", "--resume", "model.pt", "--patience", "4", "--no-plots")

    assert "Stopped early after epoch 3 of 9: no higher validation accuracy in 2 epochs\n" in stopped.stdout
    assert "Kept epoch 1 of 9 (validation accuracy " in stopped.stdout
    assert "Stopped early after epoch 5 of 9" in resumed.stdout
    assert Checkpoint.load(tmp_path / "model.pt").settings.patience == 4


def test_a_preset_gives_what_is_not_given(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    options = ("--preset", "accurate", "--epochs", "1", "--hidden-size", "8", "--no-flip", "--no-plots")

    result = run("rnn-train", "--data", "data", "--dataset", "fashion-mnist", *options)

    assert result.returncode == 0, result.stderr
    settings = Checkpoint.load(tmp_path / "model.pt").settings
    preset = preset_settings("accurate", "fashion-mnist")
    assert (settings.cell, settings.shift, settings.normalize) == (preset.cell, preset.shift, preset.normalize)
    assert (settings.epochs, settings.hidden_size, settings.flip) == (1, 8, False)


def test_long_epochs_print_every_hundredth_step(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data", train=230)

    result = run("rnn-train", "--data", "data", "--batch-size", "1", *QUICK)

    assert re.findall(r"Epoch \[1/1\], Step \[(\d+)/230\]", result.stdout) == ["100", "200", "230"]


def test_the_last_line_of_an_epoch_shows_its_mean_loss(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")

    result = run("rnn-train", "--data", "data", "--batch-size", "7", *QUICK, "--epochs", "2")

    rows = Checkpoint.load(tmp_path / "model.pt").metrics["epochs"]
    assert result.stdout.splitlines()[:2] == [
        f"Epoch [{row['epoch']}/2], Step [6/6], Loss: {row['train_loss']:.4f} (mean of the epoch)" for row in rows
    ]


def test_a_folder_of_validation_images_chooses_the_epoch(run: Run, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_classes(tmp_path / "photos" / split, count=30)

    refused = run("rnn-train", "--data", "photos", "--val-split", "0.5", *QUICK)
    result = run("rnn-train", "--data", "photos", *QUICK)

    assert refused.stderr == "Error: photos/val: holds the validation images already. Leave out --val-split\n"
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        "photos: 60 training, 60 validation, 60 test images of 6x5, gray, 2 classes: ant, bee",
        "The validation images choose the epoch that is kept and calibrate its probabilities; the test images are used "
        "once, for the final accuracy",
        "A batch of 100 holds all 60 training images, so each epoch is one step",
        "Wrote model.pt",
    ]
    assert "Kept epoch 1 of 1 (validation accuracy " in result.stdout
    assert "on the 60 test images: " in result.stdout


def test_the_epoch_that_is_kept_is_named(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=10)

    result = run("rnn-train", "--data", "photos", "--val-split", "0.2", *QUICK, "--epochs", "3")

    metrics = Checkpoint.load(tmp_path / "model.pt").metrics
    accuracies = [row["validation_accuracy"] for row in metrics["epochs"]]
    best = accuracies.index(max(accuracies))
    assert metrics["kept_epoch"] == best + 1
    assert f"Kept epoch {best + 1} of 3 (validation accuracy {100 * accuracies[best]:.1f} %)\n" in result.stdout


def test_validation_prints_a_line_an_epoch(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=10)

    result = run("rnn-train", "--data", "photos", "--val-split", "0.2", *QUICK, "--epochs", "2")

    assert result.returncode == 0, result.stderr
    assert "The validation images choose the epoch that is kept\n" in result.stderr
    pattern = r"Epoch \[(\d)/2\], Validation loss: \d\.\d{4}, accuracy: \d{1,3}\.\d\d %"
    assert re.findall(pattern, result.stdout) == ["1", "2"]
    assert re.search(r"Accuracy of the network on the 4 validation images: \d{1,3}\.\d %\n$", result.stdout)


def test_unreadable_images_are_left_out_if_asked(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos")
    (tmp_path / "photos" / "bee" / "broken.jpg").write_bytes(b"no image")

    refused = run("rnn-train", "--data", "photos", *QUICK)
    skipped = run("rnn-train", "--data", "photos", "--skip-unreadable", *QUICK)

    assert refused.returncode == 2
    assert "photos/bee/broken.jpg" in refused.stderr
    assert skipped.returncode == 0, skipped.stderr


def test_replacing_a_checkpoint_and_its_reports_is_told(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos")
    for name in ("model.pt", *REPORTS):
        (tmp_path / name).write_bytes(b"of an earlier run")

    result = run("rnn-train", "--data", "photos", "--epochs", "1", "--hidden-size", "8")

    assert "model.pt exists: the first checkpoint replaces it" in result.stderr
    # without held-out images there are no examples, and those of before would mislead
    assert names(tmp_path) & REPORTS == {"metrics.csv", "report.html"}
    assert "No images were held out" in (tmp_path / "report.html").read_text()


def test_resuming_what_is_done_says_so(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    assert run("rnn-train", "--data", "data", *QUICK).returncode == 0

    result = run("rnn-train", "--resume", "model.pt", "--no-plots")

    assert "model.pt: this run is complete, with 1 of 1 epochs. To train longer, ask for more epochs" in result.stderr


def test_images_written_to_a_folder_do_not_mix_with_others(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.png").touch()

    result = run("rnn-onnx", "write-images", "--data", "data", "images")

    assert result.returncode == 2
    assert "isn't empty" in result.stderr


def test_moved_data_is_resumed_where_it_is_now(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    assert run("rnn-train", "--data", "data", *QUICK).returncode == 0
    (tmp_path / "data").rename(tmp_path / "elsewhere")

    options = ("--data", "elsewhere", "--epochs", "2", "--output", "more.pt", "--no-plots")
    result = run("rnn-train", "--resume", "model.pt", *options)

    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("Wrote more.pt\n")
    assert Checkpoint.load(tmp_path / "more.pt").source.data == "elsewhere"
    assert Checkpoint.load(tmp_path / "model.pt").resume_state["epoch"] == 1


def test_a_run_repeats_bit_for_bit(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    options = ("--data", "data", "--device", "cpu", "--preset", "accurate", *QUICK)

    for name in ("a.pt", "b.pt"):
        assert run("rnn-train", *options, "--output", name).returncode == 0

    first, second = (Checkpoint.load(tmp_path / name).weights for name in ("a.pt", "b.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_images_too_large_for_a_net_say_how_to_shrink_them(run: Run, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    for prefix, count in (("train", 40), ("t10k", 20)):
        (tmp_path / "data" / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((count, 1, 5000), np.uint8)))

    result = run("rnn-train", "--data", "data", *QUICK)

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "data" in result.stderr
    assert "--image-size" in result.stderr


@pytest.mark.slow
def test_a_log_on_a_full_disk_is_no_reason_to_stop_training(run_process: RunProcess, tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data")
    options = ("--data", "data", *QUICK, "--epochs", 2)
    with Path("/dev/full").open("w") as full:
        result = run_process("rnn-train", *options, stdout=full)

    assert result.returncode == 0
    assert result.stderr.splitlines()[-2:] == [
        "Standard output can't be written, so nothing more is printed: No space left on device",
        "Wrote model.pt",
    ]
    assert len(Checkpoint.load(tmp_path / "model.pt").metrics["epochs"]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_exit_code_3(run: Run) -> None:
    result = run("rnn-train", "--dataset", "digits", "--device", "cuda")

    assert result.returncode == 3
    assert result.stderr.startswith("Error: torch finds no CUDA device here")


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_reason_to_stop_training(run_process: RunProcess, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    write_idx_folder(tmp_path / "data")
    options = ("--data", "data", *QUICK, "--epochs", 2)

    result = run_process("rnn-train", *options, stdout=write, stderr=write)

    os.close(write)
    assert result.returncode == 0
    assert len(Checkpoint.load(tmp_path / "model.pt").metrics["epochs"]) == 2
    assert (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("--resume", "--epochs", "1"),
            "--resume needs the checkpoint to continue: --resume model.pt, or",
        ),
        (("--dataset", "digits", "--skip-unreadable"), "--skip-unreadable does nothing with --dataset digits"),
        (("--dataset", "digits", "--data-root", "x"), "--data-root does nothing with --dataset digits"),
        (("--augment",), "--augment rotation,scale for signs, or --augment crop,rotation,color for photos"),
        (("--augment", "--flip"), "--augment needs its parts"),
        (("--dataset", "digits", "--augment", "all"), "each one of rotation, scale, crop, color, invert, blur, not"),
        (("--resume", "model.onnx"), "model.onnx: an exported model, not a checkpoint"),
    ],
)
def test_options_that_can_not_work_get_a_hint(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"a model")

    result = run("rnn-train", *arguments)

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert problem in result.stderr
