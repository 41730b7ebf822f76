"""Parts of shards in object storage: a real S3 API on the loopback interface."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from rnn_runtime import Classifier, Shard, StorageError, classify_files, classify_shard, find_images, merge_parts
from rnn_runtime.errors import InputError
from tests.support.commands import Run, RunProcess
from tests.support.results import read_results
from tests.support.storage import Proxy, Request, contents, empty, fail, put, reset, started

PARTS = "s3://results/digits"

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(scope="module")
def running() -> Iterator[Proxy]:
    with started() as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def storage(running: Proxy) -> Iterator[Proxy]:
    """S3 with the bucket `results`, which holds a file that isn't ours."""
    reset(running)
    put("results", "digits/notes.txt", b"not a part")
    yield running
    reset(running)
    empty("results")


def write_part(run: Run, number: int, *options: str) -> str:
    result = run("rnn-infer", "-p", "cpu", "--shard", f"{number}/3", "--output", PARTS, *options, "images")
    assert result.returncode <= 1, result.stderr
    return result.stderr.splitlines()[0]


@pytest.mark.parametrize("style", ["csv", "jsonl", "parquet"])
def test_parts_are_those_on_a_disk(folder: Path, run: Run, style: str) -> None:
    said = [write_part(run, number, "--format", style) for number in (1, 2, 3)]
    for number in (1, 2, 3):
        run("rnn-infer", "-p", "cpu", "--shard", f"{number}/3", "-o", "parts", "-f", style, "images")
    merged = run("rnn-onnx", "merge", PARTS, "--output", f"merged.{style}")

    assert merged.stderr == "41 images, 1 unreadable, 3 parts\n"
    on_disk = {f"digits/{path.name}": path.read_bytes() for path in (folder / "parts").iterdir()}
    assert contents("results") == on_disk | {"digits/notes.txt": b"not a part"}
    assert sorted(said) == sorted(f"s3://results/{name}: written" for name in on_disk)
    single = run("rnn-infer", "-p", "cpu", "-o", f"single.{style}", "images")
    assert single.returncode == 1
    if style == "parquet":
        tables = [pyarrow.parquet.read_table(folder / f"{name}.parquet").to_pylist() for name in ("merged", "single")]
        assert tables[0] == tables[1]
    else:
        assert read_results(folder / f"merged.{style}") == read_results(folder / f"single.{style}")


def test_a_part_that_is_there_is_left_alone(storage: Proxy, run: Run) -> None:
    first = write_part(run, 2)
    sent: list[str] = []

    def note(request: Request) -> bool:
        sent.append(request.command)
        return False

    storage.interfere = note

    again = write_part(run, 2)

    assert (first.partition(": ")[2], again) == ("written", first.replace("written", "there already"))
    assert not {"PUT", "POST"} & set(sent)


def test_what_is_missing_is_named(folder: Path, run: Run) -> None:
    write_part(run, 1)
    write_part(run, 3)

    result = run("rnn-onnx", "merge", PARTS, "--output", "merged.csv")

    assert result.returncode == 2
    assert result.stderr == f"Error: {PARTS}: 1 of 3 shards missing: 2. Run them again, such as rnn-infer --shard 2/3\n"
    assert not (folder / "merged.csv").exists()


def test_a_folder_that_is_not_there_is_named(run: Run) -> None:
    result = run("rnn-onnx", "merge", "s3://results/nowhere", "--output", "merged.csv")

    assert result.returncode == 2
    assert result.stderr.startswith("Error: s3://results/nowhere: no part of a shard is finished in this folder. ")


def test_a_damaged_part_is_named_as_it_is_in_the_storage(folder: Path, run: Run) -> None:
    write_part(run, 1)
    name = write_part(run, 2).removeprefix("s3://results/").removesuffix(": written")
    write_part(run, 3)
    put("results", name, b"path,label\na\n")

    result = run("rnn-onnx", "merge", PARTS, "--output", "merged.csv")

    assert result.returncode == 2
    assert result.stderr.startswith(f"Error: s3://results/{name}: damaged or renamed: ")
    assert not (folder / "merged.csv").exists()


@pytest.mark.slow
def test_a_part_that_can_not_be_stored_is_not_there(storage: Proxy, run: Run) -> None:
    storage.interfere = lambda request: request.command in ("PUT", "POST") and fail(request)

    result = run("rnn-infer", "-p", "cpu", "--shard", "1/3", "--output", PARTS, "images")

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert f"{PARTS}/part-00001-of-00003" in result.stderr
    assert "can't be written to the storage" in result.stderr
    storage.interfere = lambda _: False
    assert list(contents("results")) == ["digits/notes.txt"]
    assert write_part(run, 1).endswith("written")


@pytest.mark.slow
def test_answers_that_fail_are_asked_for_again(storage: Proxy, folder: Path) -> None:
    classifier = Classifier(folder / "model.onnx", "cpu")
    expected = classify_files(classifier, find_images([str(folder / "images")]), folder / "single.csv")
    asked: set[str] = set()

    def fail_once(request: Request) -> bool:
        line = f"{request.command} {request.path}"
        if line in asked:
            return False
        asked.add(line)
        return fail(request)

    storage.interfere = fail_once
    for number in (1, 2):
        classify_shard(classifier, lambda: find_images([str(folder / "images")]), Shard(number, 2), PARTS)
    summary = merge_parts(PARTS, folder / "merged.csv")

    assert summary.images == expected.images
    assert (folder / "merged.csv").read_bytes() == (folder / "single.csv").read_bytes()


def test_a_bucket_that_is_not_there_is_one_line(run: Run) -> None:
    result = run("rnn-infer", "-p", "cpu", "--shard", "1/3", "--output", "s3://nowhere/parts", "images")

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert "s3://nowhere/parts: can't be read from the storage: " in result.stderr
    assert "bucket does not exist" in result.stderr


def test_a_storage_that_refuses_is_named_before_any_image_is_read(storage: Proxy, folder: Path) -> None:
    storage.interfere = lambda request: fail(request, 403)
    classifier = Classifier(folder / "model.onnx", "cpu")

    with pytest.raises(StorageError, match=f"{PARTS}: can't be read from the storage"):
        classify_shard(classifier, lambda: [str(folder / "images" / "000.png")], Shard(1, 1), PARTS)


def test_a_path_object_is_refused_since_it_has_lost_a_slash(folder: Path) -> None:
    with pytest.raises(InputError, match="s3:/results/digits: a folder in object storage is given as text"):
        merge_parts(Path(PARTS), folder / "merged.csv")


def test_only_parts_are_written_there(run: Run) -> None:
    result = run("rnn-infer", "-p", "cpu", "--output", "s3://results/all.csv", "images")

    assert result.returncode == 2
    assert result.stderr.startswith("Error: --output is in object storage, which only gets the parts of --shard.")


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_writes_parts_there(folder: Path, run: Run, run_process: RunProcess) -> None:
    line = ("rnn-onnx", "ray", "-m", "model.onnx", "-p", "cpu", "--shards", 3, "--output", PARTS, "images")
    first = run_process(*line)
    again = run_process(*line)
    merged = run("rnn-onnx", "merge", PARTS, "--output", "merged.csv")

    assert first.stderr == "41 images, 1 unreadable, 3 parts\n"
    assert again.stderr == "0 images, 3 parts (3 from before)\n"
    assert merged.returncode == 0
    run("rnn-infer", "-p", "cpu", "-o", "single.csv", "images")
    assert (folder / "merged.csv").read_bytes() == (folder / "single.csv").read_bytes()
