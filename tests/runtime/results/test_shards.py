"""Shards: each process classifies its part of the images, and the parts become one file."""

import itertools
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime import Classifier, classify_files
from rnn_runtime.errors import InputError, SettingsError
from rnn_runtime.images.find import find_images
from rnn_runtime.interruption import RunInterruptedError
from rnn_runtime.results.run import RunOptions
from rnn_runtime.results.shards import Part, Shard, classify_shard, merge_parts
from rnn_runtime.results.write import Format
from tests.support.commands import Run, installed
from tests.support.processes import started
from tests.support.results import assert_same_results, csv_rows, read_results
from tests.support.tampered_models import change_metadata

NAMES = ["é.png", "a b,c.png", 'quo"te.png', "line\nbreak.png", "carriage\rreturn.png"]


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A working folder: model.onnx, and images/ with 45 digits, some with difficult names, and a file that is none."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    for i, path in enumerate(sorted(digits_images.rglob("*.png"))[::8]):
        shutil.copy(path, tmp_path / "images" / (NAMES[i] if i < len(NAMES) else f"{i:03}.png"))
    (tmp_path / "images" / "broken.png").write_text("no image")
    return tmp_path


def find(folder: Path) -> Iterator[str]:
    return find_images([str(folder / "images")])


def write_parts(folder: Path, count: int, *, invert: bool = False, **options: Any) -> None:
    classifier = Classifier(folder / "model.onnx", "cpu", threads=1, invert=invert)
    for number in range(1, count + 1):
        classify_shard(classifier, lambda: find(folder), Shard(number, count), folder / "parts", RunOptions(**options))


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_shards_are_equal_parts_of_the_list(total: int, count: int) -> None:
    bounds = [Shard(number, count).bounds(total) for number in range(1, count + 1)]

    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@given(st.one_of(st.text(), st.from_regex(r"[0-9]{1,7}/[0-9]{1,7}")))
def test_any_text_is_a_shard_or_a_settings_error(text: str) -> None:
    found = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
    if found and 1 <= int(found[1]) <= int(found[2]) <= 99_999:
        assert Shard.parse(text) == Shard(int(found[1]), int(found[2]))
    else:
        with pytest.raises(SettingsError, match="`shard` must be K/N"):
            Shard.parse(text)


@given(st.integers(1, 99_999).flatmap(lambda count: st.tuples(st.integers(1, count), st.just(count))))
def test_a_parts_name_says_what_it_is(number_of: tuple[int, int]) -> None:
    part = Part(Shard(*number_of), "0" * 12, "1" * 12, "a" * 12, "jsonl", 12_345, 0, 67, "b" * 12)

    parsed = Part.parse(part.name)

    assert parsed is not None
    assert asdict(parsed) == asdict(part)
    assert Part.parse(f"{part.name}.part") is None


@pytest.mark.parametrize("count", [1, 3, 50])  # 50: more than there are images
@pytest.mark.parametrize("style", ["csv", "tsv", "jsonl"])
def test_merged_parts_are_the_file_of_a_single_run(folder: Path, style: str, count: int) -> None:
    classifier = Classifier(folder / "model.onnx", "cpu", threads=1)
    expected = classify_files(classifier, find(folder), folder / f"single.{style}", RunOptions(top_k=3))
    write_parts(folder, count, format=style, top_k=3)

    summary = merge_parts(folder / "parts", folder / f"merged.{style}")

    assert_same_results(read_results(folder / f"merged.{style}"), read_results(folder / f"single.{style}"))
    assert (summary.parts, summary.images, summary.unreadable) == (count, expected.images, 1)


def test_merged_parquet_is_that_of_a_single_run(folder: Path) -> None:
    classify_files(Classifier(folder / "model.onnx", "cpu"), find(folder), folder / "single.parquet")
    write_parts(folder, 4, format="parquet")

    merge_parts(folder / "parts", folder / "merged.parquet")

    single, merged = (pyarrow.parquet.read_table(folder / f"{name}.parquet") for name in ("single", "merged"))
    assert merged.schema == single.schema
    assert_same_results(merged.to_pylist(), single.to_pylist())


@pytest.mark.parametrize("style", ["csv", "parquet"])
def test_a_shard_that_is_stopped_says_to_start_it_again(folder: Path, style: Format) -> None:
    classifier, options = Classifier(folder / "model.onnx", "cpu", threads=1), RunOptions(format=style)
    listings = itertools.count()

    def find_stopped() -> Iterator[str]:
        stop = next(listings) == 1
        for i, path in enumerate(find(folder)):
            if stop and i == 7:
                raise KeyboardInterrupt
            yield path

    with pytest.raises(RunInterruptedError) as caught:
        classify_shard(classifier, find_stopped, Shard(1, 2), folder / "parts", options)

    assert str(caught.value) == "interrupted; start shard 1/2 again"
    _, summary = classify_shard(classifier, lambda: find(folder), Shard(1, 2), folder / "parts", options)
    assert summary is not None
    assert summary.images == 23


def test_a_finished_shard_is_left_alone_and_one_that_was_begun_is_continued(folder: Path, run: Run) -> None:
    arguments = ("rnn-infer", "--provider", "cpu", "--batch-size", 1, "--shard", "2/3", "--output", "parts", "images")
    with started(*map(str, arguments), folder=folder, pause_at="open:images/022.png") as process:
        process.wait_for_pause()
        process.send_signal(signal.SIGTERM)
        process.go_on()
        _, errors = process.communicate(timeout=60)
    assert errors == "Error: terminated; start shard 2/3 again\n"

    continued = run(*arguments)

    (part,) = (folder / "parts").iterdir()
    assert continued.returncode == 0
    assert re.search(r"\([1-9][0-9]? from before\)", continued.stderr)
    assert [row["path"] for row in csv_rows(part.read_bytes().decode())] == [
        path.removeprefix(f"{folder}/") for path in list(find(folder))[15:30]
    ]
    written = part.stat()
    again = run(*arguments)
    assert again.returncode == 0
    assert again.stderr == f"parts/{part.name}: there already\n"
    assert part.stat().st_mtime_ns == written.st_mtime_ns


def test_a_shard_that_was_run_twice_counts_once(folder: Path) -> None:
    write_parts(folder, 2)
    part = min((folder / "parts").iterdir())
    content = part.read_bytes().replace(b"0.9", b"0.8")  # as on another processor
    finished = Part.parse(part.name)
    assert finished is not None
    again = folder / "again.csv"
    again.write_bytes(content)
    other = replace(finished, content=finished.digest(again))
    again.rename(part.with_name(other.name))

    assert merge_parts(folder / "parts", folder / "merged.csv").images == 46


def test_the_command_merges_to_a_file_and_to_standard_output(folder: Path, run: Run) -> None:
    for number in (1, 2):
        assert run("rnn-infer", "--shard", f"{number}/2", "-o", "parts", "images").returncode in (0, 1)

    result = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")
    printed = run("rnn-onnx", "merge", "parts", "--quiet")

    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "46 images, 1 unreadable, 2 parts\n"
    assert (printed.stdout, printed.stderr) == ((folder / "merged.csv").read_bytes().decode(), "")


def test_names_on_standard_input_and_images_in_class_folders(folder: Path, run: Run) -> None:
    names = "\0".join(find(folder))
    for number in (1, 2):
        arguments = ("--shard", f"{number}/2", "-o", "parts", "--copy-to", "images/sorted", "-r", "-0", "-", "images")
        run("rnn-infer", *arguments, input=names)

    result = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")

    assert result.returncode == 0, result.stderr
    assert len(csv_rows((folder / "merged.csv").read_bytes().decode())) == 92  # under both names, and no copies
    assert len([path for path in (folder / "images/sorted").rglob("*") if path.is_file()]) == 45


def test_images_that_change_meanwhile_are_an_error_and_no_part(folder: Path) -> None:
    classifier = Classifier(folder / "model.onnx", "cpu")
    lists = iter([["a.png", "b.png", "c.png"], ["a.png", "b.png", "d.png"]])

    with pytest.raises(InputError, match="changed while their shard was classified: 3 at the beginning, 3 at the end"):
        classify_shard(classifier, lambda: next(lists), Shard(1, 2), folder / "parts")

    assert not [path for path in (folder / "parts").iterdir() if Part.parse(path.name)]


def test_missing_parts_are_named(folder: Path, run: Run) -> None:
    write_parts(folder, 30)
    for part in sorted((folder / "parts").iterdir())[2:20]:
        part.unlink()

    result = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "parts: 18 of 30 shards missing: 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 ..." in result.stderr
    assert "such as rnn-infer --shard 3/30" in result.stderr
    assert not (folder / "merged.csv").exists()


def test_parts_that_do_not_belong_together_are_refused(folder: Path) -> None:
    def assert_refused(what: str) -> None:
        with pytest.raises(InputError, match=f"holds parts of {what}"):
            merge_parts(folder / "parts", folder / "merged.csv")
        shutil.rmtree(folder / "parts")

    write_parts(folder, 2)
    write_parts(folder, 2, top_k=2)
    assert_refused("2 settings")
    write_parts(folder, 2)
    write_parts(folder, 2, invert=True)
    assert_refused("2 settings")
    write_parts(folder, 2)
    write_parts(folder, 2, format="jsonl")
    assert_refused("2 formats")
    write_parts(folder, 2)
    write_parts(folder, 3)
    assert_refused("2 numbers of shards: 2, 3")
    write_parts(folder, 2)
    (folder / "images" / "one_more.png").write_bytes((folder / "images" / "030.png").read_bytes())
    write_parts(folder, 2)
    assert_refused("2 lists of images")


def test_parts_of_two_models_are_refused(folder: Path) -> None:
    write_parts(folder, 2)
    change_metadata(folder / "model.onnx", folder / "model.onnx", metrics="{}")
    write_parts(folder, 2)

    with pytest.raises(InputError, match="holds parts of 2 models"):
        merge_parts(folder / "parts", folder / "merged.csv")


@pytest.mark.parametrize("style", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("damage", ["shortened", "empty", "other"])
def test_a_damaged_part_is_an_error(folder: Path, damage: str, style: str) -> None:
    write_parts(folder, 3, format=style)
    part = sorted((folder / "parts").iterdir())[1]
    content = part.read_bytes()
    part.write_bytes({"shortened": content[: len(content) // 2], "empty": b"", "other": b'\xff"{[,\n'}[damage])

    with pytest.raises(InputError, match="damaged or renamed: its content isn't that of its name"):
        merge_parts(folder / "parts", folder / f"merged.{style}")

    assert not (folder / f"merged.{style}").exists()


def test_a_part_under_the_name_of_another_is_an_error(folder: Path) -> None:
    write_parts(folder, 3)
    first, second, _ = sorted((folder / "parts").iterdir())
    renamed = second.with_name(first.name.replace("part-00001", "part-00002"))
    second.unlink()
    renamed.write_bytes(first.read_bytes())

    with pytest.raises(InputError, match="damaged or renamed"):
        merge_parts(folder / "parts", folder / "merged.csv")

    first.rename(first.with_name(first.name.replace("-rows-", "-rows-1")))
    with pytest.raises(InputError, match="damaged or renamed"):
        merge_parts(folder / "parts", folder / "merged.csv")


def test_one_other_digit_in_a_part_is_noticed(folder: Path) -> None:
    write_parts(folder, 2)
    part = min((folder / "parts").iterdir())
    part.write_bytes(part.read_bytes().replace(b"0.9", b"0.8", 1))

    with pytest.raises(InputError, match="damaged"):
        merge_parts(folder / "parts", folder / "merged.csv")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--shard", "0/3", "-o", "parts", "images"), "--shard must be K/N with K from 1 to N"),
        (("--shard", "4/3", "-o", "parts", "images"), "--shard must be K/N with K from 1 to N"),
        (("--shard", "three", "-o", "parts", "images"), "--shard must be K/N, such as 3/8"),
        (("--shard", "1/3", "images"), "--shard needs a folder for the results. Add --output"),
        (("--shard", "1/3"), "Name an image, a folder"),
        (("--shard", "1/3", "-o", "parts", "--resume", "images"), "--resume is what --shard does in any case"),
        (("--shard", "1/3", "-o", "parts", "-f", "table", "images"), "--format of --shard is csv, tsv, jsonl"),
        (("--shard", "1/3", "-o", "model.onnx", "images"), "--output is named like a checkpoint or model"),
        (("-o", "images", "images"), "images: not a regular file"),
        (("merge", "nowhere"), "nowhere: no part of a shard is finished in this folder"),
        (("merge", "images"), "images: no part of a shard is finished in this folder"),
        (("merge", "images", "-o", "model.onnx"), "--output is named like a checkpoint or model"),
        (("merge", "images", "-o", "s3://bucket/a.csv"), "--output is in object storage"),
    ],
)
def test_mistakes_are_one_line(folder: Path, run: Run, arguments: tuple[str, ...], problem: str) -> None:
    result = run("rnn-onnx", *arguments) if arguments[0] == "merge" else run("rnn-infer", "-p", "cpu", *arguments)

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert problem in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["images", "model.onnx"]


def test_the_merged_file_has_the_parts_format(folder: Path, run: Run) -> None:
    write_parts(folder, 2, format="jsonl")

    result = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")

    assert result.returncode == 2
    assert "merged.csv: the parts in parts are jsonl. Choose a name that ends in .jsonl" in result.stderr


@pytest.mark.slow
def test_shards_killed_at_random_and_run_by_two_machines_at_once_lose_and_double_nothing(
    folder: Path, run: Run
) -> None:
    images = sorted((folder / "images").iterdir())
    (folder / "many").mkdir()
    for i in range(8_000):
        (folder / "many" / f"{i:06}.png").hardlink_to(images[i % len(images)])
    dice = random.Random(0)
    shards = [(number, host) for number in range(1, 9) for host in ("a", "b")]
    killed = 0
    while len(list((folder / "parts").glob("part-*.csv"))) < 8:
        dice.shuffle(shards)
        processes = [
            subprocess.Popen(
                [installed("rnn-infer"), "--shard", f"{number}/8", "-o", "parts", "-p", "cpu", "-j", "1", "many"],
                cwd=folder,
                stderr=subprocess.PIPE,
            )
            for number, _ in shards[:4]
        ]
        for process in processes:
            try:
                process.communicate(timeout=dice.uniform(0.2, 1.2) if killed < 12 else 60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += 1

    result = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")

    assert result.returncode == 0, result.stderr
    assert killed
    single = run("rnn-infer", "-p", "cpu", "-o", "single.csv", "many")
    assert single.returncode == 1  # an image is none
    assert_same_results(read_results(folder / "merged.csv"), read_results(folder / "single.csv"))
