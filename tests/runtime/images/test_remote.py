"""Images in object storage: a real S3 API on the loopback interface, also one that fails and stalls."""

import collections
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnn_runtime import Classifier, StorageError, find_images
from rnn_runtime.errors import InputError, MissingPackageError
from rnn_runtime.files import remote
from tests.support.commands import Run, RunProcess
from tests.support.results import assert_same_results, csv_rows
from tests.support.storage import Proxy, Request, fail, put, reset, started

BUCKET = "images"
ODD_NAMES = ("a b.png", "é#?%20.png")


@pytest.fixture(scope="module")
def storage(digits_images: Path) -> Iterator[Proxy]:
    """S3 with the bucket `images`: digits/CLASS/NAME.png, odd names, and a file that is no image."""
    with started() as proxy:
        paths = sorted(digits_images.rglob("*.png"))[::12]
        for path in paths:
            put(BUCKET, f"digits/{path.parent.name}/{path.name}", path.read_bytes())
        for name in ODD_NAMES:
            put(BUCKET, f"odd/{name}", paths[0].read_bytes())
        put(BUCKET, "odd/notes.png", b"no image")
        put(BUCKET, "odd/.hidden.png", b"no image")
        yield proxy


@pytest.fixture(autouse=True)
def fresh(storage: Proxy) -> None:
    reset(storage)


@pytest.fixture(scope="module")
def classifier(digits_model: Path) -> Classifier:
    return Classifier(digits_model, "cpu")


def test_a_folder_in_storage_has_the_images_of_a_folder_on_disk(
    run: Run, tmp_path: Path, classifier: Classifier, digits_images: Path
) -> None:
    arguments = ("--model", classifier.path, "-r", "-k", "2", "--labels-from-folders")
    result = run("rnn-infer", *arguments, "-o", "remote.csv", "s3://images/digits/")

    assert result.returncode == 0, result.stderr
    rows = run("rnn-infer", *arguments, *map(str, sorted(digits_images.rglob("*.png"))[::12]))
    expected = rows.stdout.replace(str(digits_images), "s3://images/digits")
    assert csv_rows((tmp_path / "remote.csv").read_text()) == csv_rows(expected)


def test_names_are_taken_as_they_are(run: Run, classifier: Classifier) -> None:
    result = run("rnn-infer", "--model", classifier.path, "s3://images/odd", "s3://images/odd/missing.png")

    rows = {row["path"].rpartition("/")[2]: row for row in csv_rows(result.stdout)}
    assert list(rows) == [ODD_NAMES[0], "missing.png", "notes.png", ODD_NAMES[1]]
    assert rows["missing.png"]["error"] == "no such file or directory"
    assert rows["notes.png"]["error"] == "not an image in a supported format, or damaged"
    assert all(rows[name]["label"] for name in ODD_NAMES)
    assert result.returncode == 1


def test_python_classifies_them_as_any_path(classifier: Classifier) -> None:
    images = list(find_images(["s3://images/digits"], recursive=True))

    assert images == sorted(images)
    assert [prediction.error for prediction in classifier.predict(images)] == [None] * len(images)


@pytest.mark.parametrize("path", ["s3://images/nowhere/", "s3://no-such-bucket/x"])
def test_what_is_not_there_is_a_row(run: Run, classifier: Classifier, path: str) -> None:
    result = run("rnn-infer", "--model", classifier.path, path)

    assert result.returncode == 1
    assert csv_rows(result.stdout)[0]["error"] == "no such file or directory"


def test_a_folder_without_images_is_an_error() -> None:
    with pytest.raises(InputError, match="s3://images/digits: no image files in this folder"):
        list(find_images(["s3://images/digits"]))


@pytest.mark.slow
def test_answers_that_fail_are_asked_for_again(storage: Proxy, classifier: Classifier) -> None:
    images = list(find_images(["s3://images/digits"], recursive=True))
    expected = classifier.predict(images)
    asked: collections.Counter[str] = collections.Counter()

    def fail_twice(handler: Request) -> bool:
        asked[handler.command + handler.path] += 1
        return asked[handler.command + handler.path] <= 2 and fail(handler)

    storage.interfere = fail_twice

    assert classifier.predict(images) == expected


@pytest.mark.slow
def test_answers_that_stall_are_asked_for_again(
    storage: Proxy, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_REQUEST_SECONDS", 1)
    images = list(find_images(["s3://images/digits"], recursive=True))[:8]
    expected = classifier.predict(images)
    turns = itertools.count()

    def stall(_: Any) -> bool:
        if next(turns) == 3:
            time.sleep(5)
        return False

    storage.interfere = stall

    assert classifier.predict(images) == expected


@pytest.mark.slow
def test_a_storage_that_never_answers_ends_the_run_which_can_be_continued(
    storage: Proxy, run: Run, tmp_path: Path, classifier: Classifier
) -> None:
    arguments = ("--model", classifier.path, "-r", "-b", "4", "-o", "results.csv", "s3://images/digits")
    allowed = itertools.count()
    storage.interfere = lambda handler: next(allowed) > 40 and fail(handler)

    failed = run("rnn-infer", *arguments)

    assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1), failed.stderr
    assert "can't be read from the storage" in failed.stderr
    storage.interfere = lambda _: False
    result = run("rnn-infer", *arguments, "--resume")
    assert result.returncode == 0, result.stderr
    images = list(find_images(["s3://images/digits"], recursive=True))
    rows = csv_rows((tmp_path / "results.csv").read_text())
    assert [row["path"] for row in rows] == images


def test_they_can_not_be_copied(run: Run, classifier: Classifier) -> None:
    result = run("rnn-infer", "--model", classifier.path, "-r", "--copy-to", "sorted", "s3://images/digits")

    assert result.returncode == 2
    assert "in object storage, and only files of this machine can be copied or linked" in result.stderr


def test_shards_of_a_folder_in_storage(run: Run, classifier: Classifier) -> None:
    for number in (1, 2, 3):
        run(
            "rnn-infer", "--model", classifier.path, "-r", "--shard", f"{number}/3", "-o", "parts", "s3://images/digits"
        )

    merged = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")

    assert merged.returncode == 0, merged.stderr


def test_without_pyarrow_a_line_says_what_to_install(
    run_process: RunProcess, classifier: Classifier, tmp_path: Path
) -> None:
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow" / "__init__.py").touch()

    arguments = ("--provider", "cpu", "--model", classifier.path, "s3://images/digits")

    result = run_process("rnn-infer", *arguments, env={"PYTHONPATH": os.curdir})

    assert result.returncode == MissingPackageError.exit_code
    assert result.stderr == "Error: pyarrow is not installed. Install it with: pip install pyarrow\n"


def test_a_storage_that_refuses_is_named(storage: Proxy, classifier: Classifier) -> None:
    storage.interfere = lambda handler: fail(handler, 403)

    with pytest.raises(StorageError, match=r"s3://images/digits/1\.png: can't be read from the storage"):
        classifier.predict(["s3://images/digits/1.png"])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_actors_of_ray_read_from_storage(
    tmp_path: Path, storage: Proxy, digits_model: Path, run_process: RunProcess, run: Run
) -> None:
    line = ("rnn-onnx", "ray", "-m", digits_model, "-p", "cpu", "-o", "parts", "--shards", 3, "-r")
    failed = 0

    def fail_once_in_three(request: Request) -> bool:
        nonlocal failed
        failed += 1
        if failed % 3:
            return False
        return fail(request)

    storage.interfere = fail_once_in_three
    found = run_process(*line, f"s3://{BUCKET}/digits")

    assert found.stderr == "30 images, 3 parts\n"
    assert failed > 30
    storage.interfere = lambda _: False
    single = run("rnn-infer", "-m", digits_model, "-p", "cpu", "-o", "single.csv", "-r", f"s3://{BUCKET}/digits")
    assert single.returncode == 0
    assert run("rnn-onnx", "merge", "parts", "-o", "merged.csv").returncode == 0
    expected, merged = (csv_rows((tmp_path / name).read_text()) for name in ("single.csv", "merged.csv"))
    assert_same_results(merged, expected)
