"""Speed by batch size, of one classifier and of all ways to run a model, side by side."""

import io
import json
import shlex
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rnn_runtime import Classifier, CudaOptions
from rnn_runtime.checks import speed
from rnn_runtime.checks.speed import (
    Comparison,
    Timing,
    Variant,
    compare,
    describe_comparison,
    measure_speed,
    write_timings,
)
from rnn_runtime.cli import main
from rnn_runtime.errors import InputError, ProviderError
from rnn_runtime.toolbox import command_line
from tests.support.commands import Run
from tests.support.results import csv_rows

CPU, CUDA, TF32 = VARIANTS = (
    Variant("cpu", "cpu"),
    Variant("cuda", "cuda"),
    Variant("cuda tf32", "cuda", CudaOptions(tf32=True)),
)


class WrongClassifier(Classifier):
    """Its logits aren't the model's."""

    def predict_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return super().predict_logits(images) + 1


class SmallClassifier(Classifier):
    """It has memory for 4 images."""

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) > 4:
            raise ProviderError(f"a run of {len(images)} images failed on CUDA device 0: out of memory")
        return super().predict_proba(images)


class SlowClassifier(Classifier):
    """Runs take as long as their images by its clock, 0.2 seconds each."""

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        clock.seconds += 0.2 * len(images)
        return super().predict_proba(images)


class MemorylessClassifier(Classifier):
    """Its process has memory for 4 images."""

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) > 4:
            raise MemoryError
        return super().predict_proba(images)


class Clock:
    """Real time, and what runs only pretend to take."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.seconds


clock = Clock()


@pytest.fixture(autouse=True)
def pretended_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "time", clock)


@pytest.fixture
def compare_stand_ins(monkeypatch: pytest.MonkeyPatch, digits_model: Path) -> Any:
    """Compare with classifiers on the CPU in the place of those on CUDA: `compare_stand_ins({"cuda": Classifier})`."""

    def compare_them(kinds: dict[str, type[Classifier]], batch_sizes: tuple[int, ...] = (1, 4, 16)) -> Comparison:
        def open_variant(model: Path, provider: str, *, threads: int | None, cuda: CudaOptions) -> Classifier:
            name = f"{provider} tf32" if cuda.tf32 else provider
            if name not in kinds:
                raise ProviderError(f"{model}: the CUDA provider could not start: no NVIDIA driver was found")
            return kinds[name](model, "cpu", threads=threads)

        monkeypatch.setattr(speed, "Classifier", open_variant)
        return compare(digits_model, batch_sizes=batch_sizes, seconds=0.005, threads=1)

    return compare_them


def timings(rates: dict[str, dict[int, float]]) -> tuple[Timing, ...]:
    return tuple(
        Timing(name, size, rate, 1000 * size / rate, 1000 * size / rate, 1000 * size / rate, 10)
        for name, by_size in rates.items()
        for size, rate in by_size.items()
    )


def comparison(rates: dict[str, dict[int, float]]) -> Comparison:
    return Comparison(timings(rates), tuple(variant for variant in VARIANTS if variant.name in rates), {})


def test_each_batch_size_is_timed(digits_model: Path) -> None:
    found = measure_speed(Classifier(digits_model, provider="cpu"), batch_sizes=(1, 5), seconds=0.05)

    assert [timing.batch_size for timing in found] == [1, 5]
    for timing in found:
        assert timing.variant == "cpu"
        assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms
        assert timing.runs >= 5
        assert timing.images_per_second == pytest.approx(1000 * timing.batch_size / timing.p50_ms)


def test_a_run_of_over_a_second_is_made_once(digits_model: Path) -> None:
    (timing,) = measure_speed(SlowClassifier(digits_model, "cpu"), batch_sizes=(8,), seconds=0.01)

    assert timing.runs == 1


def test_a_run_that_fails_is_the_error_that_it_is(digits_model: Path) -> None:
    with pytest.raises(ProviderError, match="out of memory"):
        measure_speed(SmallClassifier(digits_model, "cpu"), batch_sizes=(5,), seconds=0.01)


@pytest.mark.parametrize(
    "options", [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"batch_sizes": ("a",)}, {"seconds": 0}]
)
def test_nothing_to_time_is_an_input_error(digits_model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1 and seconds above 0"):
        measure_speed(Classifier(digits_model, provider="cpu"), **options)
    with pytest.raises(InputError, match="at least 1 and seconds above 0"):
        compare(digits_model, **options)


def test_what_runs_is_timed_and_the_rest_is_listed_with_its_reason(compare_stand_ins: Any) -> None:
    found = compare_stand_ins({"cpu": Classifier, "cuda tf32": SmallClassifier})

    assert [(timing.variant, timing.batch_size) for timing in found.timings] == [
        ("cpu", 1),
        ("cuda tf32", 1),
        ("cpu", 4),
        ("cuda tf32", 4),
        ("cpu", 16),
    ]
    assert [variant.name for variant in found.variants] == ["cpu", "cuda tf32"]
    assert found.problems["cuda"] == "the CUDA provider could not start: no NVIDIA driver was found"
    assert found.problems["cuda tf32"].startswith("no batches of 16 and more: a run of 16 images failed")


def test_a_variant_that_fails_the_check_is_never_recommended(compare_stand_ins: Any) -> None:
    found = compare_stand_ins({"cpu": WrongClassifier, "cuda": Classifier})

    assert {timing.variant for timing in found.timings} == {"cuda"}
    assert found.variant(found.best()) == CUDA
    assert "logits differ from PyTorch's by up to 1.0" in found.problems["cpu"]


def test_what_did_not_run_is_said_once_per_reason(compare_stand_ins: Any) -> None:
    lines = describe_comparison(compare_stand_ins({"cpu": Classifier}))

    assert lines[1:] == [
        "All that were timed agree with PyTorch on the golden samples.",
        "cuda, cuda tf32: the CUDA provider could not start: no NVIDIA driver was found",
    ]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (SlowClassifier, "no batches of 16 and more: each would take over 1 second"),
        (MemorylessClassifier, "no batches of 16 and more: the memory ran out"),
    ],
)
def test_a_variant_that_ends_early_is_listed_with_the_reason(
    compare_stand_ins: Any, kind: type[Classifier], reason: str
) -> None:
    found = compare_stand_ins({"cpu": Classifier, "cuda": kind})

    assert found.problems["cuda"] == reason
    assert [timing.batch_size for timing in found.timings if timing.variant == "cuda"] == [1, 4]
    assert [timing.batch_size for timing in found.timings if timing.variant == "cpu"] == [1, 4, 16]


def test_batches_that_would_need_too_much_memory_are_left_out_or_refused(compare_stand_ins: Any) -> None:
    found = compare_stand_ins({"cpu": Classifier}, (1, 10_000_000, 20_000_000))

    assert [timing.batch_size for timing in found.timings] == [1]
    assert found.problems["cpu"] == "no batches of 10,000,000 and more: the images would take over 512 MiB"
    with pytest.raises(InputError, match=r"of 8 x 8 x 1 values each, at most 8,388,608 fit into 512 MiB. Choose"):
        compare_stand_ins({"cpu": Classifier}, (10_000_000,))


def test_a_variant_that_has_ended_leaves_its_memory_to_the_others(compare_stand_ins: Any) -> None:
    ended: list[weakref.ref[Classifier]] = []
    alive: list[bool] = []

    class Witness(Classifier):
        def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(images) == 16:
                alive.append(ended[0]() is not None)
            return super().predict_proba(images)

    class Ending(SmallClassifier):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            ended.append(weakref.ref(self))

    compare_stand_ins({"cpu": Ending, "cuda": Witness}, (4, 8, 16))

    assert set(alive) == {False}


def test_no_variant_that_runs_is_an_error(compare_stand_ins: Any) -> None:
    with pytest.raises(ProviderError, match="none of the variants runs here: the CUDA provider could not start"):
        compare_stand_ins({})


def test_the_preferred_of_equally_fast_ones_is_chosen_and_the_smallest_batch() -> None:
    found = comparison(
        {
            "cpu": {1: 100, 64: 1_000, 1024: 1_010},
            "cuda": {1: 97, 64: 2_000, 1024: 9_700},
            "cuda tf32": {1: 90, 64: 2_100, 1024: 10_000},
        }
    )

    assert (found.best().variant, found.best().batch_size) == ("cuda", 1024)
    assert found.best(1).variant == "cpu"
    assert found.best(64).variant == "cuda"  # 2,000 and 2,100 are within 5 %


rates = st.dictionaries(st.sampled_from([1, 4, 16, 64]), st.floats(1, 1e6), min_size=1)


@given(st.dictionaries(st.sampled_from([variant.name for variant in VARIANTS]), rates, min_size=1))
def test_what_is_recommended_is_at_most_five_percent_slower_than_the_best(found: dict[str, dict[int, float]]) -> None:
    compared = comparison(found)

    for size in (None, *{size for by_size in found.values() for size in by_size}):
        among = [timing for timing in compared.timings if size in (None, timing.batch_size)]
        best = compared.best(size)
        assert best in among
        assert best.images_per_second >= 0.95 * max(timing.images_per_second for timing in among)


def test_the_command_line_is_one_that_the_command_takes() -> None:
    cuda = CudaOptions(device_id=1, memory_limit=1 << 30, tf32=True)

    line = command_line(Path("my models/a.onnx"), "cuda", 4096, cuda, 3)

    assert line == (
        "rnn-infer --model 'my models/a.onnx' --provider cuda --batch-size 4096 --threads 3 --device-id 1 "
        "--gpu-memory-limit 1024 --tf32"
    )
    context = main.make_context("rnn-infer", [*shlex.split(line)[1:], "a.png"])
    assert (context.params["batch_size"], context.params["tf32"]) == (4096, True)


def test_timings_are_written_as_csv_json_lines_and_a_table_of_80_columns() -> None:
    found = timings({variant.name: {1: 9_048.0, 16384: 2_345_678.0} for variant in VARIANTS})
    csv, jsonl, table, single = (io.StringIO() for _ in range(4))

    write_timings(found, csv, "csv")
    write_timings(found, jsonl, "jsonl")
    write_timings(found, table, "table")
    write_timings(found[:2], single, "table")

    assert csv_rows(csv.getvalue())[0] == {
        "variant": "cpu",
        "batch_size": "1",
        "images_per_second": "9048.000",
        "p50_ms": "0.111",
        "p90_ms": "0.111",
        "p99_ms": "0.111",
        "runs": "10",
    }
    assert [Timing(**json.loads(line)) for line in jsonl.getvalue().splitlines()] == list(found)
    assert "2,345,678" in table.getvalue()
    assert "p99_ms" in single.getvalue()
    for text in (table.getvalue(), single.getvalue()):
        assert max(map(len, text.splitlines())) <= 80


def test_the_benchmark_times_the_batch_size_that_was_asked_for(run: Run, digits_model: Path) -> None:
    options = ("--provider", "cpu", "--batch-size", "5", "--format", "jsonl")

    result = run("rnn-onnx", "benchmark", digits_model, *options)

    assert [json.loads(line)["batch_size"] for line in result.stdout.splitlines()] == [5]


def test_the_command_compares_and_names_the_line_to_use(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "compare", digits_model, "--batch-size", "5")

    assert result.returncode == 0, result.stderr
    assert {row["batch_size"] for row in csv_rows(result.stdout)} == {"5"}
    assert csv_rows(result.stdout)[0]["variant"] == "cpu"
    assert result.stderr.count(f"rnn-infer --model {digits_model} --provider c") == 1
    assert "For batches of 5 (" in result.stderr
    assert "Copies to the device and back are included" in result.stderr


@pytest.mark.parametrize("command", [("benchmark", "--provider", "cpu"), ("compare",)])
def test_a_batch_that_is_too_large_is_one_line(run: Run, digits_model: Path, command: tuple[str, ...]) -> None:
    result = run("rnn-onnx", *command, digits_model, "--batch-size", "16777216")

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "a batch of 16,777,216 images is too large to time" in result.stderr
    assert "at most 8,388,608 fit into 512 MiB. Choose a smaller batch size" in result.stderr
