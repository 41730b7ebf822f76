"""Which batch sizes a device runs."""

from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.engine.buckets import LARGEST, Buckets, divide

sizes = st.integers(1, LARGEST)


@given(st.lists(st.tuples(sizes, st.none() | sizes), min_size=1))
def test_a_batch_fits_and_is_less_than_doubled(batches: list[tuple[int, int | None]]) -> None:
    buckets = Buckets()

    for images, batch_size in batches:
        assert images <= buckets.fit(images, batch_size) < 2 * images or images == 1


@given(st.lists(st.tuples(sizes, st.none() | st.integers(1, 1 << 24))))
def test_any_number_of_batches_has_few_sizes(batches: list[tuple[int, int | None]]) -> None:
    buckets = Buckets()

    found = {buckets.fit(images, batch_size) for images, batch_size in batches}

    powers = {size for size in found if size & (size - 1) == 0}
    assert len(powers) <= LARGEST.bit_length()
    assert len(found - powers) <= 8


def test_full_batches_are_not_padded_and_parts_of_them_little() -> None:
    buckets = Buckets()

    assert [buckets.fit(images, 1000) for images in (1000, 999, 600, 512, 3, 1)] == [1000, 1000, 1000, 512, 4, 1]
    assert buckets.fit(1001) == 1024


def test_a_size_whose_runs_all_failed_leaves_its_place_to_another() -> None:
    buckets = Buckets()
    for size in range(1001, 1021):
        buckets.fit(size, size)
        buckets.forget(size)

    buckets.fit(600, 600)

    assert buckets.fit(599) == 600
    assert buckets.fit(1001) == 1024


def test_a_size_that_ran_stays_when_a_later_run_fails() -> None:
    buckets = Buckets()
    buckets.fit(600, 600)
    buckets.keep(600)

    buckets.forget(600)

    assert buckets.fit(599) == 600


@given(st.integers(1, 10 * LARGEST))
def test_a_large_batch_is_divided_into_all_of_its_rows(images: int) -> None:
    rows = range(images)

    parts = [rows[part] for part in divide(images)]

    assert [row for part in parts for row in part] == list(rows)
    assert max(map(len, parts)) <= LARGEST
