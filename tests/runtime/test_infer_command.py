"""`rnn-infer`: what it reads, prints and writes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import Run, RunProcess, installed
from tests.support.encoded_images import encode, pattern
from tests.support.processes import at_a_terminal
from tests.support.results import csv_rows, jsonl_rows

INFER = installed("rnn-infer")


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A working folder as a deployment has it: model.onnx, and 30 digits in images/, three a class."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    for path in (path for number in range(10) for path in sorted(digits_images.glob(f"{number}/*"))[:3]):
        target = tmp_path / "images" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def test_folder_gives_csv_in_sorted_order_when_piped(run: Run, folder: Path) -> None:
    result = run("rnn-infer", "--provider", "cpu", "--recursive", "images")

    rows = csv_rows(result.stdout)
    assert result.returncode == 0, result.stderr
    assert [row["path"] for row in rows] == sorted(str(path.relative_to(folder)) for path in folder.glob("images/*/*"))
    assert sum(row["label"] == Path(row["path"]).parent.name for row in rows) >= 27
    assert result.stderr.startswith("30 images, ")
    assert result.stderr.endswith("on cpu\n")


def test_files_folders_patterns_and_standard_input_go_together(run: Run, folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("images/*/*"))

    result = run("rnn-infer", names[0], "images/1", "images/2/*.png", "-", input=f"{names[9]}\r\n\n{names[10]}\n")

    paths = [row["path"] for row in csv_rows(result.stdout)]
    assert paths == sorted([names[0], *names[3:6], *names[6:9], names[9], names[10]])


def test_a_gray_model_says_once_that_it_ignores_colors(run: Run, folder: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (folder / name).write_bytes(encode(np.full((20, 30, 3), (200, 20, 20), np.uint8), name[1:]))
    (folder / "c.png").write_bytes(encode(np.full((20, 30, 1), 90, np.uint8)))

    result = run("rnn-infer", "--provider", "cpu", "a.png", "b.jpg", "c.png")
    quiet = run("rnn-infer", "--provider", "cpu", "--quiet", "a.png", "b.jpg", "c.png")

    warning = "2 images stored in color, such as a.png: model.onnx takes gray images, so their colors are ignored"
    assert result.stderr.splitlines()[1] == warning
    assert quiet.stderr == ""
    assert quiet.stdout == result.stdout


@pytest.mark.usefixtures("folder")
def test_jsonl_with_top_k_has_the_likeliest_classes(run: Run) -> None:
    result = run("rnn-infer", "--format", "jsonl", "--top-k", "3", "images/4")

    rows = jsonl_rows(result.stdout)
    assert len(rows) == 3
    for row in rows:
        assert row["probability"] >= row["probability_2"] >= row["probability_3"] > 0
        assert len({row["label"], row["label_2"], row["label_3"]}) == 3
        assert row["error"] is None


@pytest.mark.usefixtures("folder")
def test_top_k_beyond_the_classes_shows_them_all(run: Run) -> None:
    result = run("rnn-infer", "--top-k", "50", "images/4")

    assert "label_10" in result.stdout.splitlines()[0]
    assert "label_11" not in result.stdout.splitlines()[0]


def test_table_shows_a_row_an_image(run: Run, folder: Path) -> None:
    result = run("rnn-infer", "--format", "table", "images/4")

    for path in (folder / "images" / "4").iterdir():
        assert f"images/4/{path.name}" in result.stdout


def test_terminal_gets_a_table(folder: Path) -> None:
    shown = at_a_terminal("rnn-infer", "images/4", folder=folder, stderr=subprocess.DEVNULL)

    assert "path  " in shown
    assert shown.count("images/4/") == 3


@pytest.mark.parametrize("style", ["csv", "jsonl", "table"])
def test_results_redirected_at_a_terminal_leave_a_bar_on_it(
    run: Run, folder: Path, digits_images: Path, style: str
) -> None:
    arguments = ("--recursive", "--batch-size", 1, "--format", style, digits_images)
    with (folder / "results").open("w") as results:
        shown = at_a_terminal("rnn-infer", *arguments, folder=folder, stdout=results)

    assert (folder / "results").read_text() == run("rnn-infer", *arguments).stdout
    assert "/4/" in (folder / "results").read_text()
    assert str(digits_images / "4") not in shown
    assert "Classifying" in shown
    assert "360/360" in shown


def test_bar_counts_earlier_results_too(folder: Path, digits_images: Path) -> None:
    arguments = ("--recursive", "--output", "out.csv", "--resume", digits_images)
    at_a_terminal("rnn-infer", *arguments, folder=folder)

    shown = at_a_terminal("rnn-infer", *arguments, folder=folder)

    assert "360/360" in shown


def test_results_on_the_terminal_have_no_bar_among_them(folder: Path) -> None:
    shown = at_a_terminal("rnn-infer", "--format", "csv", "images/4", folder=folder)

    assert shown.count("images/4/") == 3
    assert "Classifying" not in shown


@pytest.mark.parametrize("count", [40, 1100])
def test_a_table_on_the_terminal_has_no_bar_among_its_rows(folder: Path, count: int) -> None:
    (source, *_) = (folder / "images" / "4").iterdir()
    (folder / "many").mkdir()
    for i in range(count):
        (folder / "many" / f"{i:04}.png").hardlink_to(source)

    shown = at_a_terminal("rnn-infer", "many", folder=folder)

    assert [row in shown for row in ("many/0000.png", f"many/{count - 1:04}.png")] == [True, True]
    assert "Classifying" in shown
    assert shown.rindex("Classifying") < shown.index("many/0000.png")
    assert f"\nmany/{count - 1:04}.png  4  " in shown


def test_labels_from_folders_prints_the_evaluation(run: Run, folder: Path) -> None:
    result = run("rnn-infer", "--recursive", "--labels-from-folders", "--output", "out.csv", "images")

    rows = csv_rows((folder / "out.csv").read_text())
    right = sum(row["label"] == row["true_label"] for row in rows)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Accuracy: {100 * right / 30:.2f} % ({right} of 30 images right)\n")
    assert "precision" in result.stdout
    assert "Confusion matrix" in result.stdout


@pytest.mark.usefixtures("folder")
def test_a_summary_holds_all_figures_of_the_evaluation(run: Run, tmp_path: Path) -> None:
    options = ("--recursive", "--labels-from-folders", "--top-k", 3, "--output", "out.csv", "--summary", "run.json")
    result = run("rnn-infer", *options, "images")

    summary = json.loads((tmp_path / "run.json").read_text())
    rows = csv_rows((tmp_path / "out.csv").read_text())
    assert result.returncode == 0, result.stderr
    assert summary["accuracy"] == sum(row["label"] == row["true_label"] for row in rows) / 30
    among_3 = [row["true_label"] in (row["label"], row["label_2"], row["label_3"]) for row in rows]
    assert summary["top_k_accuracies"] == {"3": sum(among_3) / 30}
    assert [found["support"] for found in summary["classes"]] == [3] * 10
    assert (summary["not_evaluated"], summary["largest_class_share"], summary["only_prediction"]) == (0, 0.1, None)
    assert 0 <= summary["expected_calibration_error"] <= 1
    assert summary["balanced_accuracy"] == pytest.approx(summary["accuracy"])  # as many images of each class


@pytest.mark.usefixtures("folder")
def test_evaluation_beside_csv_on_stdout_goes_to_stderr(run: Run) -> None:
    result = run("rnn-infer", "--recursive", "--labels-from-folders", "images")

    assert len(csv_rows(result.stdout)) == 30
    assert "Accuracy: " not in result.stdout
    assert "Accuracy: " in result.stderr


def test_images_in_folders_of_no_class_are_not_evaluated(run: Run, folder: Path) -> None:
    (folder / "images" / "3").rename(folder / "images" / "\x1b[31mthree")

    result = run("rnn-infer", "--recursive", "--labels-from-folders", "--output", "out.csv", "images")

    assert result.returncode == 1
    assert "of 27 images right" in result.stdout
    assert (
        "Not evaluated: 3 images in folders that aren't named after a class, such as images/\\x1b[31mthree/"
        in result.stderr
    )
    rows = csv_rows((folder / "out.csv").read_text())
    assert [row["true_label"] for row in rows].count("") == 3


def test_folders_within_a_class_belong_to_it(run: Run, folder: Path) -> None:
    (folder / "images" / "3").rename(folder / "moved")
    (folder / "images" / "3").mkdir()
    (folder / "moved").rename(folder / "images" / "3" / "scans")

    result = run("rnn-infer", "--recursive", "--labels-from-folders", "--output", "out.csv", "images")

    assert result.returncode == 0
    assert "of 30 images right" in result.stdout


def write_table(folder: Path, *, without: str = "") -> None:
    """`labels.csv`, which names all images of `images/` but those in a folder, and calls those in 3 fours."""
    names = sorted(path.relative_to(folder / "images") for path in (folder / "images").rglob("*.png"))
    rows = [f"{name},{'4' if name.parts[0] == '3' else name.parts[0]}" for name in names if name.parts[0] != without]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))


@pytest.mark.parametrize("paths", [("images",), ("images/*/*.png", "images"), ("images/3", "images")])
def test_labels_in_a_table_are_the_true_classes(run: Run, folder: Path, paths: tuple[str, ...]) -> None:
    write_table(folder)

    result = run("rnn-infer", "--labels", "labels.csv", "--output", "out.csv", *paths)

    rows = csv_rows((folder / "out.csv").read_text())
    right = sum(row["label"] == row["true_label"] for row in rows)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Accuracy: {100 * right / 30:.2f} % ({right} of 30 images right)\n")
    assert all(row["true_label"] == "4" for row in rows if row["path"].startswith("images/3/"))


def test_images_without_a_row_and_rows_without_an_image_are_told(run: Run, folder: Path) -> None:
    write_table(folder, without="3")
    (folder / "images" / "notes.txt").touch()
    with (folder / "labels.csv").open("a") as file:
        file.write("\nnotes.txt,5\n")

    result = run("rnn-infer", "--labels", "labels.csv", "--output", "out.csv", "images")

    assert result.returncode == 1
    assert "of 27 images right" in result.stdout
    assert "Not evaluated: 3 images that labels.csv doesn't name, such as images/3/" in result.stderr
    assert "Not evaluated: 1 row of labels.csv, whose files aren't among the images: " in result.stderr
    assert "/images/notes.txt\n" in result.stderr


def test_each_shard_evaluates_its_images_by_a_table(run: Run, folder: Path) -> None:
    write_table(folder)

    result = run("rnn-infer", "--labels", "labels.csv", "--shard", "1/2", "--output", "parts", "images")

    assert result.returncode == 0, result.stderr
    assert "of 15 images right" in result.stdout


@pytest.mark.parametrize(
    ("rows", "arguments", "problem"),
    [
        ("gone.png,4", ("images",), "labels.csv: line 2: there is no file 'gone.png' in images"),
        ("3,4", ("images",), "labels.csv: line 2: there is no file '3' in images"),
        ("4,cat", ("images",), "labels.csv: line 2: the label 'cat' is none of the model's classes: 0, 1, 2, 3, 4,"),
        ("", ("images",), "labels.csv: no rows"),
        ("", ("--labels-from-folders", "images"), "--labels and --labels-from-folders both give the true classes"),
        ("", ("s3://bucket/images",), "--labels is for images on a disk"),
    ],
)
def test_tables_that_can_not_be_used_are_an_error(
    run: Run, folder: Path, rows: str, arguments: tuple[str, ...], problem: str
) -> None:
    (folder / "labels.csv").write_text(f"path,label\n{rows}\n")

    result = run("rnn-infer", "--labels", "labels.csv", *arguments)

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert result.stderr.startswith(f"Error: {problem}")


def test_unreadable_images_get_rows_a_count_and_exit_code_1(run: Run, folder: Path) -> None:
    (folder / "images" / "4" / "empty.png").touch()
    (folder / "images" / "4" / "text.jpg").write_text("no image")

    result = run("rnn-infer", "--provider", "cpu", "images/4", "missing.png")

    errors = {row["path"]: row["error"] for row in csv_rows(result.stdout) if row["error"]}
    assert result.returncode == 1
    assert errors == {
        "images/4/empty.png": "the file is empty",
        "images/4/text.jpg": "not an image in a supported format, or damaged",
        "missing.png": "no such file or directory",
    }
    assert sum(bool(row["label"]) for row in csv_rows(result.stdout)) == 3
    assert result.stderr.startswith("6 images, 3 unreadable, ")


def test_output_is_written_whole_or_not_at_all(run: Run, folder: Path) -> None:
    (folder / "out.csv").write_text("the old results")

    failed = run("rnn-infer", "--output", "out.csv", "no-such-folder/*.png")
    assert failed.returncode == 2
    assert (folder / "out.csv").read_text() == "the old results"
    assert run("rnn-infer", "--output", "out.csv", "images/4").returncode == 0

    assert len(csv_rows((folder / "out.csv").read_text())) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["images", "model.onnx", "out.csv"]


def test_model_is_taken_from_the_environment(run: Run, folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "elsewhere.onnx")

    result = run("rnn-infer", "images/4", env={"RNN_MODEL": "elsewhere.onnx"})

    assert result.returncode == 0, result.stderr
    assert len(csv_rows(result.stdout)) == 3


def test_reader_that_stops_early_ends_it_quietly(folder: Path) -> None:
    for i in range(3000):
        os.link(folder / "images" / "4" / os.listdir(folder / "images" / "4")[0], folder / "images" / f"{i}.png")

    result = subprocess.run(
        f"{INFER} --provider cpu images | head -1", shell=True, cwd=folder, capture_output=True, text=True, check=False
    )

    assert result.stdout == "path,label,probability,error\n"
    assert result.stderr == ""


@pytest.mark.parametrize("style", ["csv", "jsonl", "table"])
def test_odd_names_come_out_readable(run: Run, folder: Path, style: str) -> None:
    names = [
        b"a b.png",
        b"line\nbreak.png",
        b"r\rn.png",
        b"\xff\xfe.png",
        "ü.png".encode(),
        b"\x1b[31mred.png",
        b"a,b.png",
    ]
    os.mkdir(folder / "odd")
    for name in names:
        shutil.copy(next((folder / "images" / "4").iterdir()), os.fsdecode(os.fsencode(folder / "odd") + b"/" + name))

    result = run("rnn-infer", "--provider", "cpu", "--format", style, "odd")

    assert result.returncode == 0, result.stderr
    if style == "table":
        assert "\x1b[31m" not in result.stdout
        assert "\\x1b[31mred.png" in result.stdout
    else:
        rows = csv_rows(result.stdout) if style == "csv" else jsonl_rows(result.stdout)
        assert {row["path"] for row in rows} == {"odd/" + os.fsdecode(name) for name in names}


ODD_NAMES = (b"line\nbreak.png", b"r\rn.png", b"\xff\xfe.png", b"\x1b[31mred.png", b" a b .png", b"d\xc3\xa9.png")


@pytest.fixture
def odd(folder: Path) -> Path:
    """A folder of images with odd names."""
    image = next((folder / "images" / "4").iterdir())
    (folder / "odd").mkdir()
    for name in ODD_NAMES:
        (folder / "odd" / os.fsdecode(name)).hardlink_to(image)
    return folder / "odd"


@pytest.mark.parametrize("option", ["--null", "-0"])
def test_any_name_can_be_given_with_a_null_at_its_end(run: Run, odd: Path, option: str) -> None:
    listed = subprocess.run(
        ["find", "odd", "-name", "*.png", "-print0"], cwd=odd.parent, capture_output=True, check=True
    )

    result = run("rnn-infer", option, "-", input=listed.stdout)

    assert result.returncode == 0, result.stderr
    assert {os.fsencode(row["path"]) for row in csv_rows(result.stdout)} == {b"odd/" + name for name in ODD_NAMES}


@pytest.mark.parametrize("style", ["csv", "jsonl", "table"])
@pytest.mark.usefixtures("odd")
def test_names_that_are_no_utf8_can_be_given_a_line_each(run: Run, style: str) -> None:
    names = b"odd/\xff\xfe.png\r\n\nodd/r\rn.png\nodd/\x1b[31mred.png\nodd/missing \xff.png"

    result = run("rnn-infer", "--format", style, "-", input=names)

    printed = os.fsencode(result.stdout)
    assert result.returncode == 1, result.stderr
    assert "4 images, 1 unreadable, " in result.stderr
    assert "Traceback" not in result.stderr
    if style == "csv":
        assert b"\nodd/\xff\xfe.png,4," in printed
        assert b"\nodd/missing \xff.png,,,no such file or directory\n" in printed
    elif style == "jsonl":
        assert {os.fsencode(row["path"]): row["label"] for row in jsonl_rows(result.stdout)} == {
            b"odd/\xff\xfe.png": "4", b"odd/r\rn.png": "4", b"odd/\x1b[31mred.png": "4", b"odd/missing \xff.png": None
        }  # fmt: skip
    else:
        for shown in (rb"odd/\udcff\udcfe.png", rb"odd/r\rn.png", rb"odd/\x1b[31mred.png", rb"odd/missing \udcff.png"):
            assert shown in printed


@pytest.mark.usefixtures("folder")
def test_null_without_standard_input_is_refused(run: Run) -> None:
    result = run("rnn-infer", "-0", "images/4")

    assert result.returncode == 2
    assert "--null is for names on standard input" in result.stderr


@pytest.mark.usefixtures("folder")
def test_names_ending_with_null_unasked_name_the_missing_option(run: Run) -> None:
    result = run("rnn-infer", "-", input="images/1/a.png\0images/1/b.png\0")

    assert result.returncode == 2
    assert result.stderr.endswith("Add --null\n")


def test_closed_standard_input_is_told_in_a_line(folder: Path) -> None:
    line = f"{INFER} --provider cpu - <&-"

    result = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=False)

    assert result.returncode == 2
    assert result.stderr == "Error: -: there is no standard input, it is closed\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("\x1b[31m.png/*.png",),
        ("--output", "no\x1b[31m/out.csv", "images"),
        ("--model", "\x1b[31m.onnx", "images"),
        ("--\x1b[31mred.png",),
    ],
)
@pytest.mark.usefixtures("folder")
def test_names_in_errors_cannot_control_the_terminal(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("rnn-infer", "--provider", "cpu", *arguments)

    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert "\\x1b[31m" in result.stderr


@pytest.mark.usefixtures("folder")
def test_batch_size_and_threads_do_not_change_results(run: Run) -> None:
    outputs = {
        run("rnn-infer", "--batch-size", size, "--threads", threads, "--recursive", "images").stdout
        for size, threads in ((1, 1), (7, 2), (256, 4))
    }

    labels = {tuple(row["label"] for row in csv_rows(text)) for text in outputs}
    assert len(labels) == 1


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "Name an image, a folder, a pattern, or - for standard input"),
        (("--model", "no.onnx", "a.png"), "no.onnx: no such file or directory. Write a model with: rnn-export"),
        (("--model", "images", "a.png"), "images: is a directory"),
        (("images",), "images: no image files in this folder. Add --recursive"),
        (("*.gif",), "*.gif: no file matches this pattern"),
        (("--output", "no/out.csv", "images/4"), "no/out.csv: the folder no does not exist. Create it first"),
        (("--batch-size", "0", "images/4"), "--batch-size"),
        (("--format", "xml", "images/4"), "--format"),
    ],
)
def test_bad_input_is_told_in_a_line_without_results(run: Run, arguments: tuple[str, ...], problem: str) -> None:
    result = run("rnn-infer", "--provider", "cpu", *arguments)

    assert result.returncode == 2
    assert result.stdout == ""
    assert problem in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("folder")
def test_empty_list_on_standard_input_is_no_error(run: Run) -> None:
    result = run("rnn-infer", "--provider", "cpu", "-", input="")

    assert result.returncode == 0
    assert result.stdout == "path,label,probability,error\n"
    assert result.stderr.startswith("0 images, ")


def test_named_pipes_are_not_waited_for(run: Run, folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")

    result = run("rnn-infer", "pipe.png")

    assert result.returncode == 1
    assert "not a regular file" in result.stdout


@pytest.mark.parametrize("name", ["model.pt", "other.pth", "model.onnx"])
@pytest.mark.usefixtures("folder")
def test_results_do_not_replace_a_checkpoint_or_model(run: Run, name: str) -> None:
    result = run("rnn-infer", "--output", name, "images/4")

    assert result.returncode == 2
    assert "--output is named like a checkpoint or model. Choose a name for results" in result.stderr


def test_what_is_read_is_not_overwritten(run: Run, folder: Path) -> None:
    image = folder / "images" / "4" / "image.csv"  # a file may have any name
    shutil.copy(next((folder / "images" / "4").iterdir()), image)
    before = image.read_bytes()

    result = run("rnn-infer", "--provider", "cpu", "--output", "images/4/image.csv", "images/4/image.csv")

    assert result.returncode == 2
    assert "must not be overwritten" in result.stderr
    assert image.read_bytes() == before


def test_output_that_ends_in_jsonl_is_json_lines(run: Run, folder: Path) -> None:
    run("rnn-infer", "--output", "out.jsonl", "images/4")

    assert len(jsonl_rows((folder / "out.jsonl").read_text())) == 3


def test_help_waits_for_neither_onnxruntime_nor_the_decoder(run_process: RunProcess) -> None:
    code = (
        "import sys; from rnn_runtime.cli import main; main(['--help'], standalone_mode=False);"
        "print(sorted({'onnxruntime', 'PIL', 'kornia_rs', 'numpy', 'rich'} & set(sys.modules)))"
    )

    result = run_process("python", "-c", code)

    assert result.returncode == 0, result.stderr
    assert "Classify image files with an exported model." in result.stdout
    assert result.stdout.endswith("[]\n")


def test_image_of_another_size_is_brought_to_the_models(run: Run, folder: Path) -> None:
    (folder / "photo.png").write_bytes(encode(pattern(300, 200, 3)))

    result = run("rnn-infer", "photo.png")

    assert result.returncode == 0, result.stderr
    assert csv_rows(result.stdout)[0]["label"] in "0123456789"


def test_output_that_is_no_file_is_refused_and_stays_what_it_is(run: Run, folder: Path) -> None:
    os.mkfifo(folder / "out.csv")

    result = run("rnn-infer", "--provider", "cpu", "--recursive", "--output", "out.csv", "images")

    assert result.returncode == 2
    assert "not a regular file" in result.stderr
    assert (folder / "out.csv").is_fifo()


def test_output_through_a_link_is_written_where_it_leads(run: Run, folder: Path) -> None:
    (folder / "link.csv").symlink_to("target.csv")
    (folder / "target.csv").write_text("old")

    assert run("rnn-infer", "--provider", "cpu", "--recursive", "--output", "link.csv", "images").returncode == 0

    assert (folder / "link.csv").is_symlink()
    assert (folder / "target.csv").read_text().startswith("path,label,probability,error\n")


@pytest.mark.parametrize(("closed", "lines"), [(">&-", 0), ("2>&-", 31), (">&- 2>&-", 0), ("<&-", 31)])
def test_closed_streams_are_no_obstacle(folder: Path, closed: str, lines: int) -> None:
    result = subprocess.run(
        f"{INFER} --provider cpu --recursive images {closed}", shell=True, cwd=folder, capture_output=True, check=False
    )

    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == lines
    assert b"Traceback" not in result.stderr


@pytest.mark.usefixtures("folder")
def test_names_on_standard_input_are_no_patterns(run: Run) -> None:
    result = run("rnn-infer", "--provider", "cpu", "images/4", "-", input="gone[1].png\n")

    assert result.returncode == 1
    assert [row["error"] for row in csv_rows(result.stdout)] == ["no such file or directory", "", "", ""]


def test_a_reader_of_messages_that_has_gone_is_no_reason_to_stop(folder: Path) -> None:
    line = f"{INFER} --recursive images --output out.csv --summary run.json 2>&1 | true; exit ${{PIPESTATUS[0]}}"

    result = subprocess.run(["bash", "-c", line], cwd=folder, check=False)

    assert result.returncode == 0
    assert len((folder / "out.csv").read_text().splitlines()) == 31
    assert json.loads((folder / "run.json").read_text())["images"] == 30


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("option", ["--batch-size", "--threads", "--device-id", "--gpu-memory-limit"])
def test_numbers_beyond_all_bounds_are_told_in_a_line(run: Run, option: str) -> None:
    result = run("rnn-infer", option, "9" * 400, "images/4")

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr
