"""Results in files: what is left of a run that is stopped, killed or out of disk, and how it goes on."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_runtime import Classifier, FolderEvaluation, RunInterruptedError
from rnn_runtime.errors import InputError, SettingsError
from rnn_runtime.files.atomic import growing_file
from rnn_runtime.images.find import find_images
from rnn_runtime.interruption import SIGNALS
from rnn_runtime.results.run import RunOptions, classify_files
from tests.support.commands import Run
from tests.support.encoded_images import encode
from tests.support.processes import started
from tests.support.results import assert_same_results, read_results
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
    for place, number in ((3_000, signal.SIGKILL), (7_000, signal.SIGTERM), (12_000, signal.SIGKILL), (17_000, 9)):
        arguments = ("--provider", "cpu", "--output", output.name, "--resume", "many")
        with started("rnn-infer", *arguments, folder=many, pause_at=f"open:many/{place:06}.png") as process:
            process.wait_for_pause()  # a process is held there, others read and write: the signal comes at any moment
            process.send_signal(number)
            process.communicate(timeout=60)
        assert not output.exists()

    result = run("rnn-infer", "-p", "cpu", "--output", output.name, "--resume", "--summary", "summary.json", "many")

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
    assert run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "m").returncode == 0
    assert len(read_results(folder / "out.csv")) == 1000


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_complete_results_are_left_as_they_are(folder: Path, run: Run, style: str) -> None:
    run("rnn-infer", "-p", "cpu", "--output", f"out.{style}", "images")
    before = (folder / f"out.{style}").read_bytes()

    result = run("rnn-infer", "-p", "cpu", "--output", f"out.{style}", "--resume", "images")

    assert (folder / f"out.{style}").read_bytes() == before
    assert result.returncode == 1  # as for the run before, an image can't be read
    assert "41 images (41 from before), 1 unreadable" in result.stderr


def test_complete_results_are_not_continued_with_other_images(folder: Path, run: Run) -> None:
    run("rnn-infer", "-p", "cpu", "--output", "out.csv", "images")
    before = (folder / "out.csv").read_bytes()
    shutil.copy(folder / "images" / "000.png", folder / "images" / "new.png")

    result = run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "images")

    assert result.returncode == 2
    assert result.stderr == (
        "Error: out.csv: complete, with the results of 41 images, and 42 others are given now. Choose another --output "
        "for these, or begin again without --resume\n"
    )
    assert (folder / "out.csv").read_bytes() == before


def test_without_resume_finished_results_are_made_anew(folder: Path, run: Run) -> None:
    (folder / "out.csv").write_text("old")

    run("rnn-infer", "-p", "cpu", "--output", "out.csv", "images")

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


def stopped_after(count: int) -> Callable[[int], None]:
    """What ends a run with batches of one after this many results."""
    left = itertools.count(count, -1)

    def watch(_: int) -> None:
        if next(left) == 1:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize("style", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("limit", [None, 0.9])
def test_a_resumed_run_evaluates_all_its_images(
    tmp_path: Path, digits_model: Path, digits_images: Path, style: str, limit: float | None
) -> None:
    classifier, output = Classifier(digits_model, "cpu"), tmp_path / f"out.{style}"
    paths = [str(path) for path in sorted(digits_images.rglob("*.png"))[::9]]
    options = RunOptions(top_k=3, min_probability=limit, batch_size=1)
    whole, begun, resumed = (FolderEvaluation(classifier.class_names) for _ in range(3))
    expected = classify_files(classifier, paths, tmp_path / f"whole.{style}", options, evaluation=whole)
    with pytest.raises(RunInterruptedError):
        classify_files(classifier, paths, output, options, evaluation=begun, watch=stopped_after(17))

    summary = classify_files(classifier, paths, output, options, evaluation=resumed, resume=True)

    assert np.array_equal(resumed.figures.confusion, whole.figures.confusion)
    assert resumed.figures.top_k_accuracies == whole.figures.top_k_accuracies
    assert (resumed.labeled, resumed.labeled_correct) == (whole.labeled, whole.labeled_correct)
    assert (summary.images, summary.earlier) == (len(paths), 16)
    assert summary.below_min_probability == expected.below_min_probability
    assert_same_results(read_results(output), read_results(tmp_path / f"whole.{style}"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "path,label,probability,label_2,probability_2,error\na,0,1,1,0,\n",
            "its columns are path, label, probability, l",
        ),
        ("some,other,file\n1,2,3\n", "its columns are some, other, file"),
        ("path,label,probability,error\nimages/000.png,0\n", "not results of such a run"),
        ("path,label,probability,error\nimages/000.png,0,high,\n", "not results of such a run"),
        ('path,label,probability,error\n"' + "images/000.png,0,0.9,\n" * 50_000, "not results of such a run"),
        ("path,label,probability,error\nimages/000.png,0,0.9,\n", "complete, with the results of 1 image"),
        ("\0" * 3_000_000, "not results of such a run"),
    ],
)
def test_what_is_not_this_runs_results_is_not_gone_on_with(folder: Path, run: Run, content: str, problem: str) -> None:
    (folder / "out.csv").write_text(content)

    result = run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "images")

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert problem in result.stderr
    assert (folder / "out.csv").read_text() == content
    assert not (folder / "out.csv.part").exists()


@pytest.fixture
def unfinished(folder: Path) -> Path:
    """`folder` with the unfinished results of some images."""
    with started("rnn-infer", *ONE_BY_ONE, folder=folder, pause_at="open:images/005.png") as process:
        process.wait_for_pause()
        process.send_signal(signal.SIGINT)
        process.go_on()
        process.communicate()
    return folder


def test_without_resume_an_unfinished_part_is_not_overwritten(unfinished: Path, run: Run) -> None:
    part = (unfinished / "out.csv.part").resolve()
    before = part.read_bytes()

    result = run("rnn-infer", "--provider", "cpu", "--output", "out.csv", "images")

    assert result.returncode == 2
    assert result.stderr == (
        f"Error: {part}: left by an unfinished run. Continue it with --resume, or delete the file\n"
    )
    assert part.read_bytes() == before


def test_unfinished_results_of_another_model_or_with_other_options_are_refused(
    unfinished: Path, run: Run, digits_model: Path
) -> None:
    part = (unfinished / "out.csv.part").resolve()
    before = part.read_bytes()
    change_metadata(digits_model, unfinished / "other.onnx", checkpoint_sha256="ab" * 32)
    first, other = (Classifier(unfinished / f"{name}.onnx", "cpu").sha256[:12] for name in ("model", "other"))
    for options, problem in (
        (("--model", "other.onnx"), f"model {first}, not {other}. Continue it with the same model"),
        (("--top-k", 2), "top_k 1, not 2. Continue it with the same top_k"),
        (("--min-probability", 0.5), "min_probability None, not 0.5. Continue it with the same min_probability"),
        (("--copy-to", "sorted"), "copies None, not sorted. Continue it with the same copies"),
        (("--labels-from-folders",), "true_label False, not True. Continue it with the same true_label"),
    ):
        result = run("rnn-infer", "-p", "cpu", *options, "--output", "out.csv", "--resume", "images")

        assert result.returncode == 2
        assert result.stderr == f"Error: {part}: made with {problem}, or delete the file\n"
        assert part.read_bytes() == before
    assert run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "images").returncode == 1
    assert len(read_results(unfinished / "out.csv")) == 41
    assert not list(unfinished.glob("out.csv.*"))


def test_unfinished_results_of_other_images_are_refused_and_more_at_the_end_are_not(unfinished: Path, run: Run) -> None:
    shutil.copy(unfinished / "images" / "000.png", unfinished / "images" / "zebra.png")
    (unfinished / "images" / "001.png").rename(unfinished / "001.png")

    other = run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "images")

    assert other.returncode == 2
    assert "images, and these aren't the first of those given now. Restore the images" in other.stderr
    (unfinished / "001.png").rename(unfinished / "images" / "001.png")
    assert run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "images").returncode == 1
    assert [row["path"] for row in read_results(unfinished / "out.csv")] == sorted(
        f"images/{path.name}" for path in (unfinished / "images").iterdir()
    )


@pytest.mark.parametrize(
    "content", [None, "", "[1]", "{", "[" * 10_000, '{"made_with": {}, "progress": {"bytes": "x"}}']
)
def test_without_a_record_unfinished_results_are_refused(unfinished: Path, run: Run, content: str | None) -> None:
    record = unfinished / "out.csv.part.json"
    record.unlink() if content is None else record.write_text(content)

    result = run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "images")

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "its record out.csv.part.json is missing or damaged. Delete it, and begin again" in result.stderr


WRONG_VALUES = [None, True, -1, 0, 10**30, 1.5, float("inf"), float("nan"), "x", "9" * 5000, [1], {"a": 1}]


@pytest.mark.parametrize("key", ["list", "images", "unreadable", "below_min_probability", "placed", "bytes"])
def test_a_record_with_another_value_or_without_one_is_refused(unfinished: Path, digits_model: Path, key: str) -> None:
    output, part, record = (unfinished / f"out.csv{suffix}" for suffix in ("", ".part", ".part.json"))
    images, classifier = find_images([str(unfinished / "images")]), Classifier(digits_model, provider="cpu")
    written, values = part.read_bytes(), json.loads(record.read_text())
    right = values["progress"].pop(key)
    # 1 equals True, and they aren't the same
    others = [value for value in [*WRONG_VALUES, 1] if type(value) is not type(right) or value != right]
    for changed in ({}, *({key: value} for value in others)):
        record.write_text(json.dumps(values | {"progress": values["progress"] | changed}))

        with pytest.raises(InputError, match=r"out\.csv\.part: .*[Dd]elete it, and begin again"):
            classify_files(classifier, images, output, resume=True)

        assert part.read_bytes() == written


def test_unfinished_results_that_were_changed_are_refused(unfinished: Path, digits_model: Path) -> None:
    part, classifier = unfinished / "out.csv.part", Classifier(digits_model, provider="cpu")
    written = part.read_bytes()
    for content in (written.replace(b"0", b"1"), b"\xff" * len(written), b"\0" * len(written), written[::-1]):
        part.write_bytes(content)

        with pytest.raises(InputError, match=r"it or its record out\.csv\.part\.json was changed or damaged"):
            classify_files(classifier, find_images([str(unfinished / "images")]), unfinished / "out.csv", resume=True)

        assert part.read_bytes() == content


def test_unfinished_results_of_images_that_were_changed_are_refused(unfinished: Path, run: Run) -> None:
    shutil.copy(unfinished / "images" / "004.png", unfinished / "images" / "001.png")

    result = run("rnn-infer", "-p", "cpu", "--output", "out.csv", "--resume", "images")

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "images, some of which were changed since. Delete the file, and begin again" in result.stderr


def test_a_record_is_not_written_through_a_link(folder: Path, digits_model: Path) -> None:
    (folder / "precious").write_text("somebody's")
    (folder / "out.csv.part.json").symlink_to(folder / "precious")

    classify_files(Classifier(digits_model, provider="cpu"), [str(folder / "images" / "000.png")], folder / "out.csv")

    assert (folder / "precious").read_text() == "somebody's"
    assert len(read_results(folder / "out.csv")) == 1


def test_a_file_that_got_its_name_meanwhile_is_not_written_to(tmp_path: Path) -> None:
    def write(_: int) -> bool:
        try:
            with growing_file(tmp_path / "out.csv", {}) as growing:
                growing.file.write(b"x" * 5000)
            # whoever has it now, what has the name is whole
            return os.path.getsize(tmp_path / "out.csv") == 5000
        except InputError:
            return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(400)))


def test_two_processes_do_not_write_one_file(folder: Path, run: Run) -> None:
    with started("rnn-infer", *ONE_BY_ONE, folder=folder, pause_at=AT_THE_LAST) as process:
        process.wait_for_pause()
        second = run("rnn-infer", "-p", "cpu", "--output", "out.csv", "images")

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

    result = run("rnn-infer", "-p", "cpu", "--output", "out.jsonl", "--summary", "summary.json", "images")

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


names = st.lists(st.text("ab\n\r\",\\'\udcff ", min_size=1, max_size=6), min_size=2, max_size=8, unique=True)


@settings(max_examples=settings().max_examples // 10)  # each writes and syncs several files
@given(names=names, data=st.data(), style=st.sampled_from(["csv", "tsv", "jsonl"]))
def test_results_cut_anywhere_behind_their_record_are_gone_on_with_to_the_same_end(
    module_folder: Path, digits_model: Path, names: list[str], data: st.DataObject, style: Any
) -> None:
    folder = module_folder / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        (folder / f"{name}.png").write_bytes(encode(np.full((8, 8, 1), len(name), np.uint8), ".png"))
    output, part = module_folder / f"out.{style}", module_folder / f"out.{style}.part"
    classifier, options = Classifier(digits_model, provider="cpu"), RunOptions(format=style, batch_size=1)
    classify_files(classifier, find_images([str(folder)]), output, options)
    whole = output.read_bytes()
    output.unlink()
    stop = stopped_after(data.draw(st.integers(2, len(names))))
    with pytest.raises(RunInterruptedError):
        classify_files(classifier, find_images([str(folder)]), output, options, watch=stop)
    part.write_bytes(whole[: data.draw(st.integers(part.stat().st_size, len(whole)))])  # killed before the next record

    summary = classify_files(classifier, find_images([str(folder)]), output, options, resume=True)

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


def test_unknown_format_is_a_settings_error() -> None:
    unknown: Any = "xml"

    with pytest.raises(SettingsError, match="`format` must be one of table, csv, tsv, jsonl, parquet, not 'xml'"):
        RunOptions(format=unknown)
