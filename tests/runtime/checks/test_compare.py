"""The ways to run a model, side by side."""

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
from rnn_runtime.checks.compare import compare
from rnn_runtime.checks.comparison import (
    VARIANTS,
    Comparison,
    Timing,
    Variant,
    describe_comparison,
    with_options,
    write_timings,
)
from rnn_runtime.cli import main
from rnn_runtime.errors import InputError, ProviderError
from rnn_runtime.toolbox import command_line
from tests.support.commands import Run
from tests.support.results import csv_rows

CPU, CUDA, TF32 = VARIANTS


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
    """It takes 70 ms per image."""

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(0.07 * len(images))
        return super().predict_proba(images)


class MemorylessClassifier(Classifier):
    """Its process has memory for 4 images."""

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) > 4:
            raise MemoryError
        return super().predict_proba(images)


def compare_stand_ins(
    model: Path, kinds: dict[str, type[Classifier]], batch_sizes: tuple[int, ...] = (1, 4, 16)
) -> Comparison:
    """Compare with classifiers on the CPU in the place of those on CUDA."""

    def open_variant(variant: Variant) -> Classifier:
        if variant.name not in kinds:
            raise ProviderError(f"{model}: the CUDA provider could not start: no NVIDIA driver was found")
        return kinds[variant.name](model, "cpu", threads=1)

    return compare(model, batch_sizes=batch_sizes, seconds=0.001, open=open_variant)


def timings(rates: dict[str, dict[int, float]]) -> tuple[Timing, ...]:
    return tuple(
        Timing(name, size, rate, 1000 * size / rate)
        for name, by_size in rates.items()
        for size, rate in by_size.items()
    )


def test_what_runs_is_timed_and_the_rest_is_listed_with_its_reason(digits_model: Path) -> None:
    kinds = {"cpu": Classifier, "cuda tf32": SmallClassifier}

    found = compare_stand_ins(digits_model, kinds)

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
    for timing in found.timings:
        assert timing.images_per_second == pytest.approx(1000 * timing.batch_size / timing.ms_per_run)


def test_a_variant_that_fails_the_check_is_never_recommended(digits_model: Path) -> None:
    found = compare_stand_ins(digits_model, {"cpu": WrongClassifier, "cuda": Classifier})

    assert {timing.variant for timing in found.timings} == {"cuda"}
    assert found.variant(found.best()) == CUDA
    assert "logits differ from PyTorch's by up to 1.0" in found.problems["cpu"]


def test_what_did_not_run_is_said_once_per_reason_and_where_cuda_wins(digits_model: Path) -> None:
    found = compare_stand_ins(digits_model, {"cpu": Classifier, "cuda": SmallClassifier})

    lines = describe_comparison(found)

    assert "cpu, cuda: golden samples agree with PyTorch (atol=1e-05, rtol=0.0001)" in lines
    assert "cuda tf32: the CUDA provider could not start: no NVIDIA driver was found" in lines
    assert lines[-1].startswith("CUDA is ")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (SlowClassifier, "no batches of 16 and more: each would take over 1 second"),
        (MemorylessClassifier, "no batches of 16 and more: the memory ran out"),
    ],
)
def test_a_variant_that_ends_early_is_listed_with_the_reason(
    digits_model: Path, kind: type[Classifier], reason: str
) -> None:
    found = compare_stand_ins(digits_model, {"cpu": Classifier, "cuda": kind})

    assert found.problems["cuda"] == reason
    assert [timing.batch_size for timing in found.timings if timing.variant == "cuda"] == [1, 4]
    assert [timing.batch_size for timing in found.timings if timing.variant == "cpu"] == [1, 4, 16]


def test_batches_that_would_need_too_much_memory_are_left_out_or_refused(digits_model: Path) -> None:
    found = compare_stand_ins(digits_model, {"cpu": Classifier}, (1, 10_000_000, 20_000_000))

    assert [timing.batch_size for timing in found.timings] == [1]
    assert found.problems["cpu"] == "no batches of 10,000,000 and more: the images would take over 512 MiB"
    with pytest.raises(InputError, match=r"of 8 x 8 x 1 values each, at most 8,388,608 fit into 512 MiB. Choose"):
        compare_stand_ins(digits_model, {"cpu": Classifier}, (10_000_000,))


def test_a_variant_that_has_ended_leaves_its_memory_to_the_others(digits_model: Path) -> None:
    opened: dict[str, weakref.ref[Classifier]] = {}
    alive: list[bool] = []

    class Witness(Classifier):
        def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(images) == 16:
                alive.append(opened["cuda"]() is not None)
            return super().predict_proba(images)

    def open_variant(variant: Variant) -> Classifier:
        classifier = (Witness if variant == CPU else SmallClassifier)(digits_model, "cpu", threads=1)
        opened[variant.name] = weakref.ref(classifier)
        return classifier

    compare(digits_model, variants=(CUDA, CPU), batch_sizes=(4, 8, 16), seconds=0.001, open=open_variant)

    assert set(alive) == {False}


def test_no_variant_that_runs_is_an_error(digits_model: Path) -> None:
    with pytest.raises(ProviderError, match="none of the variants runs here: the CUDA provider could not start"):
        compare_stand_ins(digits_model, {})


@pytest.mark.parametrize(
    "options", [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"batch_sizes": ("a",)}, {"seconds": 0}]
)
def test_nothing_to_time_is_an_input_error(digits_model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1 and seconds above 0"):
        compare(digits_model, **options)


def test_the_preferred_of_equally_fast_ones_is_chosen_and_the_smallest_batch() -> None:
    found = Comparison(
        timings(
            {
                "cpu": {1: 100, 64: 1_000, 1024: 1_010},
                "cuda": {1: 97, 64: 2_000, 1024: 9_700},
                "cuda tf32": {1: 90, 64: 2_100, 1024: 10_000},
            }
        ),
        (CPU, CUDA, TF32),
    )

    assert (found.best().variant, found.best().batch_size) == ("cuda", 1024)
    assert found.best(1).variant == "cpu"
    assert found.best(64).variant == "cuda"  # 2,000 and 2,100 are within 5 %
    assert found.cuda_wins_from() == 64


@pytest.mark.parametrize(
    ("cpu", "cuda", "expected"),
    [
        ({1: 2.0, 4: 2.0}, {1: 1.0, 4: 1.0}, None),
        ({1: 1.0, 4: 1.0}, {1: 2.0, 4: 2.0}, 1),
        ({1: 1.0, 4: 3.0, 16: 1.0}, {1: 2.0, 4: 2.0, 16: 2.0}, 16),  # faster at 1 as well, but not at 4
        ({1: 2.0, 4: 2.0}, {1: 1.0, 4: 3.0, 16: 3.0}, 4),  # the CPU took too long for 16
        ({1: 2.0, 4: 2.0, 16: 2.0}, {1: 1.0, 4: 3.0}, 4),  # no memory for 16 on the GPU
    ],
)
def test_cuda_wins_from_the_size_on_from_which_it_is_faster(
    cpu: dict[int, float], cuda: dict[int, float], expected: int | None
) -> None:
    found = Comparison(timings({"cpu": cpu, "cuda": cuda}), (CPU, CUDA))

    assert found.cuda_wins_from() == expected


@pytest.mark.parametrize(
    ("cpu", "cuda", "expected"),
    [
        ({1: 2, 4: 2}, {1: 1, 4: 1}, "CUDA is faster than the CPU at no batch size."),
        ({1: 1, 4: 1}, {1: 2, 4: 2}, "CUDA is faster than the CPU at every batch size that it ran."),
        ({1: 2, 1024: 2}, {1: 1, 1024: 3}, "CUDA is faster than the CPU in batches of 1,024 images and more."),
        ({1: 1, 4: 2}, {1: 2, 4: 1}, "CUDA is faster than the CPU at some batch sizes, but not at the largest."),
    ],
)
def test_where_cuda_wins_is_a_sentence(cpu: dict[int, float], cuda: dict[int, float], expected: str) -> None:
    found = Comparison(timings({"cpu": cpu, "cuda": cuda}), (CPU, CUDA))

    assert describe_comparison(found)[-1] == expected


rates = st.dictionaries(st.sampled_from([1, 4, 16, 64]), st.floats(1, 1e6), min_size=1)


@given(st.dictionaries(st.sampled_from([variant.name for variant in VARIANTS]), rates, min_size=1))
def test_what_is_recommended_is_at_most_five_percent_slower_than_the_best(found: dict[str, dict[int, float]]) -> None:
    comparison = Comparison(timings(found), tuple(variant for variant in VARIANTS if variant.name in found))

    for size in (None, *{size for by_size in found.values() for size in by_size}):
        among = [timing for timing in comparison.timings if size in (None, timing.batch_size)]
        best = comparison.best(size)
        assert best in among
        assert best.images_per_second >= 0.95 * max(timing.images_per_second for timing in among)


@given(rates, rates)
def test_cuda_wins_at_all_sizes_from_there_on_and_not_at_the_one_before(
    cpu: dict[int, float], cuda: dict[int, float]
) -> None:
    comparison = Comparison(timings({"cpu": cpu, "cuda": cuda}), (CPU, CUDA))
    wins = {size: rate > cpu.get(size, 0) for size, rate in cuda.items()}

    found = comparison.cuda_wins_from()

    below = [size for size in wins if found is None or size < found]
    assert all(won for size, won in wins.items() if size not in below)
    assert not below or not wins[max(below)]
    assert found is None or found in wins
    assert comparison.cuda_ever_wins() == any(wins.values())


def test_the_command_line_is_one_that_the_command_takes() -> None:
    (variant,) = with_options(CudaOptions(device_id=1, memory_limit=1 << 30), [TF32])

    line = command_line(Path("my models/a.onnx"), variant.provider, 4096, variant.cuda, 3)

    assert line == (
        "rnn-infer --model 'my models/a.onnx' --provider cuda --batch-size 4096 --threads 3 --device-id 1 "
        "--gpu-memory-limit 1024 --tf32"
    )
    context = main.make_context("rnn-infer", [*shlex.split(line)[1:], "a.png"])
    assert (context.params["batch_size"], context.params["tf32"]) == (4096, True)


def test_timings_are_written_as_csv_json_lines_and_a_table_of_80_columns() -> None:
    found = Comparison(timings({variant.name: {1: 9_048, 16384: 2_345_678} for variant in VARIANTS}), VARIANTS)
    csv, jsonl, table = io.StringIO(), io.StringIO(), io.StringIO()

    for file, format in ((csv, "csv"), (jsonl, "jsonl"), (table, "table")):
        write_timings(found, file, format)  # type: ignore[arg-type]

    assert csv_rows(csv.getvalue())[0] == {
        "variant": "cpu",
        "batch_size": "1",
        "images_per_second": "9048.000",
        "ms_per_run": "0.111",
    }
    assert [Timing(**json.loads(line)) for line in jsonl.getvalue().splitlines()] == list(found.timings)
    assert "2,345,678" in table.getvalue()
    assert max(map(len, table.getvalue().splitlines())) <= 80


def test_the_command_compares_and_names_the_line_to_use(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "compare", digits_model, "--batch-size", "5")

    assert result.returncode == 0, result.stderr
    assert {row["batch_size"] for row in csv_rows(result.stdout)} == {"5"}
    assert csv_rows(result.stdout)[0]["variant"] == "cpu"
    assert result.stderr.count(f"rnn-infer --model {digits_model} --provider c") == 1
    assert "For batches of 5 (" in result.stderr
    assert "Copies to the device and back are included" in result.stderr


def test_a_batch_that_is_too_large_is_one_line(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "compare", digits_model, "--batch-size", "16777216")

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "a batch of 16,777,216 images is too large to time" in result.stderr
