"""Results in files: what is left of a run that is stopped, killed or out of disk, and how it goes on."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_runtime import Classifier, RunInterruptedError
from rnn_runtime.errors import InputError, SettingsError
from rnn_runtime.files.part_file import growing_file
from rnn_runtime.images.find import find_images
from rnn_runtime.interruption import SIGNALS
from rnn_runtime.results.run import classify_files
from tests.support.commands import Run
from tests.support.encoded_images import encode
from tests.support.processes import started
from tests.support.results import assert_same_results, csv_rows, read_results
from tests.support.tampered_models import change_metadata

MANY = 20_000


@pytest.fixture
def many(folder: Path) -> Path:
    """Seconds of work: hard links to the images of `folder`."""
    images = sorted((folder / "images").iterdir())
    (folder / "many").mkdir()
    for i in range(MANY):
        (folder / "many" / f"{i:06}.png").hardlink_to(images[i % len(images)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_a_run_killed_again_and_again_loses_and_repeats_nothing(many: Path, run: Run, style: str) -> None:
    output, part = many / f"out.{style}", many / f"out.{style}.part"
    expected = many / f"out.{style}.expected"
    run("rnn-infer", "--format", style, "--output", expected.name, "many")
    sizes = []
    for place in (3_000, 7_000, 12_000, 17_000):
        arguments = ("--provider", "cpu", "--output", output.name, "--resume", "many")
        with started("rnn-infer", *arguments, folder=many, pause_at=f"open:many/{place:06}.png") as process:
            process.wait_for_pause()  # one thread is held there, others read and write: the kill comes at any moment
        assert not output.exists()
        sizes.append(part.stat().st_size)

    result = run("rnn-infer", "--output", output.name, "--resume", "--summary", "summary.json", "many")

    assert sizes == sorted(set(sizes))
    assert_same_results(read_results(output), read_results(expected))
    assert not part.exists()
    summary = json.loads((many / "summary.json").read_text())
    assert summary["images"] == MANY
    assert 0 < summary["earlier"] < MANY
    assert f"20,000 images ({summary['earlier']:,} from before), 487 unreadable" in result.stderr
    assert result.returncode == 1


# All 41 images of `folder`, of which the last is reached when others have their results.
ONE_BY_ONE = ("--provider", "cpu", "--batch-size", 1, "--output", "out.csv", "images")
AT_THE_LAST = "open:images/broken.png"


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_there_and_says_how_to_go_on(
    folder: Path, number: signal.Signals, exit_code: int
) -> None:
    part = folder / "out.csv.part"
    with started("rnn-infer", *ONE_BY_ONE, folder=folder, pause_at=AT_THE_LAST) as process:
        process.wait_for_pause()
        process.send_signal(number)
        process.go_on()
        _, errors = process.communicate(timeout=60)

    assert len(read_results(part)) > 0
    assert process.returncode == exit_code
    assert errors == (f"Error: {SIGNALS[number]}; {part.resolve()} holds the results so far. Continue with --resume\n")
    assert not (folder / "out.csv").exists()


def test_ctrl_c_again_and_again_gives_lines_and_no_traceback(folder: Path) -> None:
    with started("rnn-infer", *ONE_BY_ONE, folder=folder, pause_at=AT_THE_LAST) as process:
        process.wait_for_pause()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors
    assert all(line.startswith("Error: interrupted") for line in errors.splitlines()), errors
    assert not (folder / "out.csv").exists()


def test_a_full_disk_keeps_what_is_there_and_says_how_to_go_on(folder: Path, run: Run) -> None:
    (folder / "m").mkdir()
    for i in range(1000):
        (folder / "m" / f"{i:0100}.png").hardlink_to(folder / "images" / "000.png")

    with started(
        "rnn-infer", "--provider", "cpu", "--output", "out.csv", "m", folder=folder, largest_file=50_000
    ) as process:
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 2
    assert errors.startswith("Error: out.csv: can't be written: File too large; ")
    assert errors.endswith(". Continue with --resume\n")
    assert len(errors.splitlines()) == 1
    assert not (folder / "out.csv").exists()
    assert run("rnn-infer", "--output", "out.csv", "--resume", "m").returncode == 0
    assert len(read_results(folder / "out.csv")) == 1000


def test_new_images_are_added_to_finished_results(folder: Path, run: Run, digits_images: Path) -> None:
    run("rnn-infer", "--output", "out.csv", "images")
    before = (folder / "out.csv").read_text()
    shutil.copy(next(digits_images.rglob("*.png")), folder / "images" / "new.png")

    result = run("rnn-infer", "--output", "out.csv", "--resume", "images")

    after = (folder / "out.csv").read_text()
    assert after.startswith(before)
    assert [row["path"] for row in read_results(folder / "out.csv")[-1:]] == ["images/new.png"]
    assert "42 images (41 from before), 1 unreadable" in result.stderr


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_nothing_left_to_do_changes_nothing(folder: Path, run: Run, style: str) -> None:
    run("rnn-infer", "--output", f"out.{style}", "images")
    before = (folder / f"out.{style}").read_bytes()

    result = run("rnn-infer", "--output", f"out.{style}", "--resume", "images")

    assert (folder / f"out.{style}").read_bytes() == before
    assert result.returncode == 1  # as for the run before, an image can't be read
    assert "41 images (41 from before), 1 unreadable" in result.stderr


def test_without_resume_an_unfinished_part_is_not_overwritten(folder: Path, run: Run) -> None:
    (folder / "out.csv.part").write_text("path,label,probability,error\nimages/000.png,0,1,\n")

    result = run("rnn-infer", "--provider", "cpu", "--output", "out.csv", "images")

    part = (folder / "out.csv.part").resolve()
    assert result.returncode == 2
    assert result.stderr == (
        f"Error: {part}: left by an unfinished run. Continue it with --resume, or delete the file\n"
    )
    assert part.read_text().endswith("images/000.png,0,1,\n")


def test_without_resume_finished_results_are_made_anew(folder: Path, run: Run) -> None:
    (folder / "out.csv").write_text("old")

    run("rnn-infer", "--output", "out.csv", "images")

    assert len(read_results(folder / "out.csv")) == 41


def test_a_run_that_ends_before_its_first_result_leaves_nothing(folder: Path, digits_model: Path) -> None:
    def no_paths() -> Iterator[str]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(RunInterruptedError, match=r"^interrupted$"):
        classify_files(Classifier(digits_model, provider="cpu"), no_paths(), folder / "out.csv")

    assert not list(folder.glob("out.csv*"))


@pytest.mark.usefixtures("folder")
def test_results_and_summary_are_not_one_file(run: Run) -> None:
    result = run("rnn-infer", "--provider", "cpu", "--output", "out.csv", "--summary", "./out.csv", "images")

    assert result.returncode == 2
    assert "are the same file" in result.stderr


def test_a_resumed_run_evaluates_all_its_images(
    tmp_path: Path, run: Run, digits_model: Path, digits_images: Path
) -> None:
    shutil.copy(digits_model, tmp_path / "model.onnx")
    options = ("--output", "out.csv", "--labels-from-folders", "--recursive", "--top-k", 3)
    whole = run("rnn-infer", *options, digits_images)
    lines = (tmp_path / "out.csv").read_text().splitlines(keepends=True)
    (tmp_path / "out.csv").unlink()
    (tmp_path / "out.csv.part").write_text("".join(lines[:100]))

    resumed = run("rnn-infer", *options, "--resume", "--summary", "summary.json", digits_images)

    assert resumed.stdout == whole.stdout
    assert "Top-3 accuracy: " in resumed.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["evaluated"] == 360


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("path,label,probability,label_2,probability_2,error\n", "its columns are path, label, probability, label_2"),
        ("some,other,file\n1,2,3\n", "its columns are some, other, file"),
        ("path,label,probability,error\nimages/000.png,0\n", "not a result of rnn-infer"),
        ("path,label,probability,error\nimages/000.png,0,high,\n", "not a result of rnn-infer"),
        ("path,label,probability,error\nimages/000.png,,,\n", "neither a label nor an error"),
        ("path,label,probability,error\nimages/000.png,0,0.123456,\n", "written by another model"),
        ("path,label,probability,error\nimages/000.png,zebra,0.9,\n", "a label that isn't this model's"),
        ("path,label,probability,error\nimages/000.png,0,nan,\n", "no probability"),
        ("path,label,probability,error\nimages/000.png,0,9e999,\n", "no probability"),
        (f"path,label,probability,error\nimages/000.png,0,{10**400},\n", "not a result of rnn-infer"),
        ('path,label,probability,error\n"' + "images/000.png,0,0.9,\n" * 50_000, "unterminated row"),
    ],
)
def test_what_is_not_this_runs_results_is_not_gone_on_with(folder: Path, run: Run, content: str, problem: str) -> None:
    (folder / "out.csv").write_text(content)

    result = run("rnn-infer", "--output", "out.csv", "--resume", "images")

    assert result.returncode == 2
    assert len(result.stderr.splitlines()[-1:]) == 1
    assert problem in result.stderr.splitlines()[-1]
    assert (folder / "out.csv").read_text() == content
    assert not (folder / "out.csv.part").exists()  # so that the mended file is continued


def test_a_model_with_other_class_order_does_not_go_on(folder: Path, run: Run, digits_model: Path) -> None:
    run("rnn-infer", "--output", "out.csv", "images")
    (text,) = (prop.value for prop in onnx.load(digits_model).metadata_props if prop.key == "model")
    names = list("1234567890")
    change_metadata(digits_model, folder / "model.onnx", model=json.dumps(json.loads(text) | {"class_names": names}))

    result = run("rnn-infer", "--output", "out.csv", "--resume", "images")

    assert result.returncode == 2
    assert "out.csv: written by another model" in result.stderr


OTHER = "ab" * 32  # the checkpoint of a model that gives the same probabilities


@pytest.fixture
def unfinished(folder: Path, digits_model: Path) -> Path:
    """`folder` with the unfinished results of some images, and other.onnx, a model of another checkpoint."""
    with started("rnn-infer", *ONE_BY_ONE, folder=folder, pause_at="open:images/005.png") as process:
        process.wait_for_pause()
        process.send_signal(signal.SIGINT)
        process.go_on()
        process.communicate()
    change_metadata(digits_model, folder / "other.onnx", checkpoint_sha256=OTHER)
    return folder


def test_unfinished_results_of_another_checkpoint_are_refused(unfinished: Path, run: Run, digits_model: Path) -> None:
    before = (unfinished / "out.csv.part").read_bytes()
    checkpoint = Classifier(digits_model, provider="cpu").metadata.checkpoint_sha256[:12]

    other = run("rnn-infer", "--model", "other.onnx", "--output", "out.csv", "--resume", "images")

    assert other.returncode == 2
    assert other.stderr == (
        f"Error: {(unfinished / 'out.csv.part').resolve()}: made with checkpoint {checkpoint}, not with {OTHER[:12]}. "
        "Continue it with the same checkpoint, or delete the file\n"
    )
    assert (unfinished / "out.csv.part").read_bytes() == before
    assert run("rnn-infer", "--output", "out.csv", "--resume", "images").returncode == 1
    assert len(read_results(unfinished / "out.csv")) == 41
    assert not list(unfinished.glob("out.csv.*"))


@pytest.mark.parametrize("content", [None, "", "[1]", "{"])
def test_without_a_record_of_the_run_results_are_continued(unfinished: Path, run: Run, content: str | None) -> None:
    record = unfinished / "out.csv.part.json"
    record.unlink() if content is None else record.write_text(content)

    run("rnn-infer", "--output", "out.csv", "--resume", "images")

    assert len(read_results(unfinished / "out.csv")) == 41
    assert not record.exists()


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_a_column_of_checkpoints_tells_another_model(folder: Path, run: Run, digits_model: Path, style: str) -> None:
    change_metadata(digits_model, folder / "other.onnx", checkpoint_sha256=OTHER)
    arguments = ("--output", f"out.{style}", "--checkpoint-column", "images")
    run("rnn-infer", *arguments)

    result = run("rnn-infer", "--model", "other.onnx", "--resume", *arguments)

    assert result.returncode == 2
    assert f"and this model has {OTHER[:12]}. Use the same model as before" in result.stderr


@pytest.mark.usefixtures("folder")
def test_results_are_not_continued_with_another_minimum_probability(run: Run) -> None:
    probabilities = sorted(float(row["probability"] or 0) for row in csv_rows(run("rnn-infer", "images").stdout))
    middle, higher = probabilities[10] + 1e-5, probabilities[20] + 1e-5
    run("rnn-infer", "--output", "out.csv", "--min-probability", middle, "images")

    same = run("rnn-infer", "--output", "out.csv", "--min-probability", middle, "--resume", "images")
    other = run("rnn-infer", "--output", "out.csv", "--min-probability", higher, "--resume", "images")

    assert "41 images (41 from before)" in same.stderr
    assert other.returncode == 2
    assert "out.csv: written with another --min-probability than" in other.stderr


def test_the_least_certain_results_tell_models_apart(folder: Path, run: Run) -> None:
    for i in range(5):
        shutil.copytree(folder / "images", folder / "more" / str(i))
    run("rnn-infer", "-r", "--output", "out.csv", "more")
    rows = [row.split(",") for row in (folder / "out.csv").read_text().splitlines()]
    for row in rows[1 + 64 :]:
        row[2] = row[2] and f"{float(row[2]) - 0.02:.6f}"
    (folder / "out.csv").write_text("".join(",".join(row) + "\n" for row in rows))

    result = run("rnn-infer", "-r", "--output", "out.csv", "--resume", "more")

    assert result.returncode == 2
    assert "out.csv: written by another model, or the images have changed" in result.stderr


def test_a_file_that_got_its_name_meanwhile_is_not_written_to(tmp_path: Path) -> None:
    def write(_: int) -> bool:
        try:
            with growing_file(tmp_path / "out.csv") as file:
                file.write(b"x" * 5000)
                file.flush()
            # whoever has it now, what has the name is whole
            return os.path.getsize(tmp_path / "out.csv") == 5000
        except InputError:
            return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(400)))


def test_two_processes_do_not_write_one_file(folder: Path, run: Run) -> None:
    with started("rnn-infer", *ONE_BY_ONE, folder=folder, pause_at=AT_THE_LAST) as process:
        process.wait_for_pause()
        second = run("rnn-infer", "--output", "out.csv", "images")

    assert second.returncode == 2
    assert "out.csv.part: another process is writing it" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (("images",), "--resume continues the results in a file. Add --output; all options: rnn-infer --help"),
        (
            ("--output", "out.txt", "--format", "table", "images"),
            "--resume can't continue a table or Parquet. Choose another --format; all options: rnn-infer --help",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_only_results_in_a_file_can_be_gone_on_with(run: Run, arguments: tuple[str, ...], way_out: str) -> None:
    result = run("rnn-infer", "--provider", "cpu", "--resume", *arguments)

    assert result.returncode == 2
    assert result.stderr.endswith(f"{way_out}\n")


def test_the_summary_says_what_ran(folder: Path, run: Run) -> None:
    classifier = Classifier(folder / "model.onnx", provider="cpu")

    result = run("rnn-infer", "--output", "out.jsonl", "--summary", "summary.json", "images")

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["run"]["provider"] == "cpu"
    assert summary["run"]["model"] == "model.onnx"
    assert summary["run"]["checkpoint_sha256"] == classifier.metadata.checkpoint_sha256
    assert (summary["images"], summary["unreadable"], summary["earlier"]) == (41, 1, 0)
    assert f"checkpoint {classifier.metadata.checkpoint_sha256[:12]}, on cpu" in result.stderr


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("names")
    yield folder
    shutil.rmtree(folder)


names = st.lists(st.text("ab\n\r\",\\'\udcff ", min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


@settings(max_examples=settings().max_examples // 10)  # each writes and syncs several files
@given(names=names, data=st.data(), style=st.sampled_from(["csv", "tsv", "jsonl"]))
def test_results_cut_anywhere_are_gone_on_with_to_the_same_end(
    module_folder: Path, digits_model: Path, names: list[str], data: st.DataObject, style: Any
) -> None:
    folder = module_folder / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        (folder / f"{name}.png").write_bytes(encode(np.full((8, 8, 1), len(name), np.uint8), ".png"))
    output = module_folder / f"out.{style}"
    classifier = Classifier(digits_model, provider="cpu")
    classify_files(classifier, find_images([str(folder)]), output, format=style)
    whole = output.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    output.unlink()
    (module_folder / f"out.{style}.part").write_bytes(whole[:cut])

    summary = classify_files(classifier, find_images([str(folder)]), output, format=style, resume=True)

    again = output.read_bytes()
    assert again == whole
    assert summary.images == len(names)


def test_an_unfinished_file_that_is_a_link_or_folder_is_refused(folder: Path, digits_model: Path) -> None:
    (folder / "out.csv.part").symlink_to(folder / "model.onnx")

    with pytest.raises(InputError, match="not a regular file"):
        classify_files(Classifier(digits_model, provider="cpu"), [], folder / "out.csv")

    assert (folder / "model.onnx").read_bytes() == digits_model.read_bytes()


@pytest.mark.parametrize("output", ["model.onnx", "images", "missing/out.csv"])
def test_results_from_python_replace_no_model_and_no_folder(folder: Path, digits_model: Path, output: str) -> None:
    (folder / "model.onnx").write_bytes(digits_model.read_bytes())
    classifier = Classifier(folder / "model.onnx", provider="cpu")

    with pytest.raises(InputError):
        classify_files(classifier, ["images/000.png"], folder / output)

    assert (folder / "model.onnx").read_bytes() == digits_model.read_bytes()
    assert not list(folder.glob("*.part"))


def test_unknown_format_is_a_settings_error(digits_model: Path, tmp_path: Path) -> None:
    unknown: Any = "xml"

    with pytest.raises(SettingsError, match="`format` must be one of table, csv, tsv, jsonl, parquet, not 'xml'"):
        classify_files(Classifier(digits_model, provider="cpu"), [], tmp_path / "out.xml", format=unknown)
