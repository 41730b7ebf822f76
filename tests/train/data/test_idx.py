"""IDX files: what is whole is read as it was written, and anything else is a DataError."""

import gzip
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from numpy.typing import NDArray

from rnn_runtime.errors import DataError
from rnn_train.data.idx import parse_idx, read_idx
from tests.support.idx_files import idx_bytes

ARRAYS = numpy_strategies.arrays(
    np.uint8, numpy_strategies.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)
)


def parse_or_none(data: bytes) -> NDArray[np.uint8] | None:
    """None for a DataError; any other exception fails the test."""
    try:
        return parse_idx(data)
    except DataError:
        return None


@given(ARRAYS)
def test_what_was_written_is_read(values: NDArray[np.uint8]) -> None:
    found = parse_idx(idx_bytes(values))

    assert found.dtype == np.uint8
    assert found.shape == values.shape
    assert np.array_equal(found, values)


@given(values=ARRAYS, compress=st.booleans())
def test_files_are_read_plain_and_gzipped(
    tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint8], compress: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.idx"
    path.write_bytes(gzip.compress(idx_bytes(values)) if compress else idx_bytes(values))

    assert np.array_equal(read_idx(path), values)


def test_what_is_read_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "values").write_bytes(idx_bytes(np.zeros((2, 3), np.uint8)))

    values = read_idx(tmp_path / "values")
    values[1, 2] = 7

    assert values.sum() == 7


@given(st.binary(max_size=64))
def test_random_bytes_are_an_array_or_a_data_error(data: bytes) -> None:
    found = parse_or_none(data)

    assert found is None or idx_bytes(found) == data


@given(dimensions=st.integers(0, 255), rest=st.binary(max_size=2000))
def test_random_bytes_behind_a_right_start_never_crash(dimensions: int, rest: bytes) -> None:
    data = bytes([0, 0, 8, dimensions]) + rest

    found = parse_or_none(data)

    assert found is None or idx_bytes(found) == data


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1,) * 65, id="more dimensions than numpy has"),
        pytest.param((0, *(2**32 - 1,) * 3), id="no values, but sides beyond the address space"),
    ],
)
def test_shapes_that_numpy_cannot_hold_are_a_data_error(shape: tuple[int, ...]) -> None:
    values = b"" if 0 in shape else b"\0"

    with pytest.raises(DataError):
        parse_idx(bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + values)


@given(values=ARRAYS, data=st.data())
def test_a_file_cut_short_is_a_data_error(values: NDArray[np.uint8], data: st.DataObject) -> None:
    whole = idx_bytes(values)
    end = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(DataError):
        parse_idx(whole[:end])


@given(values=ARRAYS, more=st.binary(min_size=1, max_size=20))
def test_bytes_too_many_are_a_data_error(values: NDArray[np.uint8], more: bytes) -> None:
    with pytest.raises(DataError):
        parse_idx(idx_bytes(values) + more)


@given(values=ARRAYS, kind=st.integers(0, 255).filter(lambda kind: kind != 8))
def test_other_types_than_bytes_are_named_in_a_data_error(values: NDArray[np.uint8], kind: int) -> None:
    data = bytearray(idx_bytes(values))
    data[2] = kind

    with pytest.raises(DataError, match=f"0x{kind:02x}"):
        parse_idx(bytes(data))


def test_sizes_that_a_header_only_claims_take_no_memory() -> None:
    data = bytes([0, 0, 8, 3]) + np.array([2**20, 2**10, 2**10], ">u4").tobytes() + b"x" * 100
    tracemalloc.start()

    with pytest.raises(DataError, match="1048576 x 1024 x 1024 that holds 100 values"):
        parse_idx(data)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.gz: No such file"):
        read_idx(tmp_path / "gone.gz")


def test_a_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="directory"):
        read_idx(tmp_path)


def test_a_files_name_stands_before_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "letters").write_bytes(b"letters")

    with pytest.raises(DataError, match=r"letters: not an IDX file"):
        read_idx(tmp_path / "letters")


@given(data=st.data())
def test_a_damaged_gzip_file_never_gives_other_values(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    values = np.arange(200, dtype=np.uint8)
    whole = bytearray(gzip.compress(idx_bytes(values), mtime=0))
    place = data.draw(st.integers(2, len(whole) - 1), label="place")
    if data.draw(st.booleans(), label="cut"):
        del whole[place:]
    else:
        whole[place] ^= data.draw(st.integers(1, 255), label="bits")
    path = tmp_path_factory.getbasetemp() / "damaged.gz"
    path.write_bytes(whole)

    found = None
    with suppress(DataError):
        found = read_idx(path)
    # some bits, those of the time stamp for one, mean nothing
    assert found is None or np.array_equal(found, values)


def test_fashion_mnist_is_read_as_its_authors_describe_it(fashion_mnist: Path) -> None:
    shapes = {
        name: read_idx(fashion_mnist / f"{name}-ubyte.gz").shape for name in ("train-images-idx3", "t10k-images-idx3")
    }
    labels = {name: read_idx(fashion_mnist / f"{name}-ubyte.gz") for name in ("train-labels-idx1", "t10k-labels-idx1")}

    assert shapes == {"train-images-idx3": (60_000, 28, 28), "t10k-images-idx3": (10_000, 28, 28)}
    assert np.bincount(labels["train-labels-idx1"]).tolist() == [6000] * 10
    assert np.bincount(labels["t10k-labels-idx1"]).tolist() == [1000] * 10
