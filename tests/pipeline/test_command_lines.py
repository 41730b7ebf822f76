"""Any command line ends with an exit code, and if that isn't 0 or 1 with one line that says why."""

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings, train
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import COMMANDS, run_in_process
from tests.support.idx_files import write_idx_folder

JUNK = [
    "",
    "0",
    "-1",
    "1.5",
    "nan",
    "-inf",
    "1e999",
    "x",
    "\udcff",
    "\x1b[31m",
    "é\n",
    "-",
    "--",
    "9" * 400,
    "no/such/x",
]
COUNTS = ["1", "2", "3"]
FILES = ["model.pt", "model.onnx", "damaged.pt", "damaged.onnx", "images/0.png", "images/*.png", "images", "data", "."]
NEW = ["new.out", "new.csv", "new.jsonl", "new.tsv", "new.parquet", "images/0.png", "no/such/x", "."]
NONE: list[str] = []  # a flag without a value

# Of each command: its options with values that suit them, and what may stand beside them.
OPTIONS: dict[str, dict[str, list[str]]] = {
    "rnn-infer": {
        "": FILES,
        "--model": ["model.onnx", "damaged.onnx", "model.pt"],
        "--provider": ["auto", "cuda", "cpu"],
        "--device-id": ["0", "1"],
        "--gpu-memory-limit": COUNTS,
        "--tf32": NONE,
        "--recursive": NONE,
        "--null": NONE,
        "--invert": NONE,
        "--format": ["csv", "jsonl", "table", "tsv", "parquet"],
        "--min-probability": ["0.5", "1"],
        "--checkpoint-column": NONE,
        "--csv-safe": NONE,
        "--unlike": ["warn", "column", "error"],
        "--copy-to": ["sorted", "images", "model.pt"],
        "--link-to": ["sorted"],
        "--output": NEW,
        "--resume": NONE,
        "--summary": NEW,
        "--top-k": COUNTS,
        "--batch-size": COUNTS,
        "--threads": COUNTS,
        "--labels-from-folders": NONE,
        "--labels": ["labels.csv", "gone.csv"],
        "--shard": ["1/1", "2/3", "3/2"],
        "--quiet": NONE,
        "--version": NONE,
    },
    "rnn-export": {
        "": [*FILES, *NEW, "model.pt", "model.pt"],
        "--target": ["cpu", "cuda"],
        "--graph": ["auto", "unrolled", "wavefront", "scan", "operator"],
        "--precision": ["fp32", "fp16", "int8"],
        "--triton": ["rnn", "images", "model.pt"],
        "--quiet": NONE,
        "--atol": ["0", "1"],
        "--rtol": ["0", "1"],
        "--version": NONE,
    },
    "rnn-train": {
        "--data": ["data", "images", "."],
        "--labels": ["labels.csv", "gone.csv"],
        "--dataset": ["digits", "fashion-mnist"],
        "--class-names": ["a,b", "a,a", ","],
        "--image-size": ["3", "4x5", "0x5", "1x1"],
        "--channels": ["1", "3"],
        "--depth-range": ["auto", "full", "0-4095", "-5-5", "5-0", "0-70000", "wide"],
        "--fit": ["stretch", "pad", "crop", "glyph"],
        "--background": ["white", "#123456", "#12", "nothing"],
        "--skip-unreadable": NONE,
        "--check-data": NONE,
        "--val-split": ["0.2", "0.9"],
        "--preset": ["article", "accurate"],
        "--cell": ["rnn", "gru", "lstm"],
        "--nonlinearity": ["tanh", "relu"],
        "--bidirectional": NONE,
        "--dropout": ["0.5"],
        "--epochs": COUNTS,
        "--patience": COUNTS,
        "--batch-size": COUNTS,
        "--learning-rate": ["0.1", "1e30"],
        "--schedule": ["constant", "one-cycle"],
        "--weight-decay": ["0.1"],
        "--clip-norm": ["1"],
        "--label-smoothing": ["0.1"],
        "--class-weights": ["none", "balanced"],
        "--amp": NONE,
        "--normalize": NONE,
        "--shift": COUNTS,
        "--flip": NONE,
        "--augment": ["rotation,scale", "crop,color,blur,invert", "all", ""],
        "--tensorboard": NEW,
        "--seed": ["5"],
        "--quiet": NONE,
        "--device": ["auto", "cpu", "cuda"],
        "--calibrate": NONE,
        "--checkpoint-every": COUNTS,
        "--resume": ["model.pt", "damaged.pt", "trained.pt", "auto"],
        "--output": NEW,
        "--version": NONE,
    },
}
# whatever stands before them; training is to be short
ALWAYS = {
    "rnn-infer": [],
    "rnn-export": [],
    "rnn-train": ["--no-plots", "--data", "data", "--hidden-size", "2", "--epochs", "1"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, digits_images: Path) -> Path:
    """What command lines may name: a checkpoint and a model, whole and damaged, images, and data to train on."""
    from rnn_export import export_onnx

    folder = tmp_path_factory.mktemp("command_lines")
    random_checkpoint(ModelSpec(ImageSpec(8, 8, 1), tuple("0123456789"), hidden_size=4)).save(folder / "model.pt")
    export_onnx(folder / "model.pt", folder / "model.onnx")
    for name in ("model.pt", "model.onnx"):
        content = (folder / name).read_bytes()
        (folder / name.replace("model", "damaged")).write_bytes(content[: len(content) // 2])
    (folder / "images").mkdir()
    for i, path in enumerate(sorted(digits_images.rglob("*.png"))[:3]):
        shutil.copy(path, folder / "images" / f"{i}.png")
    (folder / "images" / "broken.png").write_bytes(b"broken")
    (folder / "labels.csv").write_text("path,label\n0.png,0\n1.png,5\n")
    write_idx_folder(folder / "data", train=20)
    source = DataSource(data=str(folder / "data"))
    train(source, TrainSettings(hidden_size=2, epochs=1), folder / "trained.pt", device="cpu", plots=False)
    return folder


@st.composite
def command_lines(draw: st.DrawFn, command: str) -> list[str]:
    """Some options, mostly with values that suit them."""
    arguments: list[str] = list(ALWAYS[command])
    for flag in draw(st.lists(st.sampled_from(sorted(OPTIONS[command])), max_size=6)):
        arguments += [flag] if flag else []
        suitable = OPTIONS[command][flag]
        if suitable:
            arguments.append(draw(st.sampled_from(suitable * 4 + JUNK)))
        elif draw(st.integers(0, 20)) == 0:
            arguments.append(draw(st.sampled_from(JUNK)))
    return arguments


@pytest.mark.parametrize("command", sorted(OPTIONS))
@pytest.mark.parametrize("called", ["-c", "python -m something"])
def test_version_is_told_with_the_commands_own_name(
    command: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, called, COMMANDS[command])

    result = run_in_process(called, "--version", folder=tmp_path)

    assert result.returncode == 0
    assert re.fullmatch(rf"{command}, version \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize("command", sorted(OPTIONS))
@given(data=st.data())
def test_any_command_line_ends_with_a_code_and_a_line(
    command: str, files: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    arguments = data.draw(command_lines(command))
    folder = tmp_path_factory.mktemp("work") / "work"
    shutil.copytree(files, folder)

    result = run_in_process(command, *arguments, folder=folder, input="images/0.png\n")

    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (0, 1, 2, 3)
    if result.returncode > 1:
        last = result.stderr.splitlines()[-1]
        assert last.startswith("Error: ")
        assert last.isprintable()
    assert not [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]
    shutil.rmtree(folder.parent)


def test_these_are_all_the_options(files: Path) -> None:
    for command, options in OPTIONS.items():
        text = run_in_process(command, "--help", folder=files).stdout
        named = re.findall(r"^  (?:-[a-z0], )?(--[a-z-]+[a-z0-9]*)", text, re.MULTILINE)
        # --data-root and MNIST would download, --hidden-size and the like take any memory
        left_out = {"--data-root", "--hidden-size", "--num-layers", "--plots", "--help"}
        assert set(named) - left_out == set(options) - {""}


def test_command_lines_without_mistakes_are_among_them(files: Path) -> None:
    for command, arguments in (
        ("rnn-infer", ["images/0.png"]),
        ("rnn-export", ["model.pt", "new.out"]),
        ("rnn-train", ["--output", "new.out"]),
    ):
        assert run_in_process(command, *ALWAYS[command], *arguments, folder=files).returncode == 0
