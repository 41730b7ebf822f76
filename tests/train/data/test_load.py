"""Data sets: where they come from, what they hold, and how they are split."""

import gzip
import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rnn_runtime.errors import DataError, SettingsError
from rnn_runtime.images.fit import fit_pixels
from rnn_runtime.interruption import signals_noted
from rnn_runtime.model.spec import ImageSpec
from rnn_train.data import Data, DataSource, LabeledImages, load_data
from rnn_train.data.idx import read_idx
from tests.support.idx_files import idx_bytes, write_idx_folder


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DataSource(dataset="digits"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"dataset": "cifar10"}, "cifar10"),
        ({"dataset": "digits", "data": "folder"}, "Leave out `data`"),
        ({"dataset": "mnist", "class_names": ("a", "b")}, "class names"),
        ({"class_names": ("a", "b")}, "class names"),
        ({"dataset": "digits", "channels": 1}, "channels"),
        *(
            ({"data": "folder", "background": color}, "`background` must be a color without transparency")
            for color in ("nothing", "#ffe0b080", "rgba(255, 224, 176, 255)", "rgb(256, 0, 0)", "")
        ),
        *(({"val_split": value}, "val_split") for value in (-0.1, 1, 1.5, float("nan"), "0.2", True, None)),
    ],
)
def test_sources_that_contradict_themselves_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        DataSource(**values)


SOURCES = st.builds(
    DataSource,
    dataset=st.sampled_from([None, "mnist", "fashion-mnist"]),
    data=st.just("some folder"),
    data_root=st.text(max_size=5),
    class_names=st.none() | st.lists(st.text(max_size=5), max_size=3).map(tuple),
    image_size=st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)),
    channels=st.sampled_from([None, 1, 3]),
    val_split=st.floats(0, 0.99),
    split_seed=st.integers(0, 2**32 - 1),
    skip_unreadable=st.booleans(),
)


@given(SOURCES)
def test_a_source_comes_back_from_plain_values(source: DataSource) -> None:
    plain = source.to_dict()

    assert not any(isinstance(value, tuple) for value in plain.values())
    assert DataSource.from_dict(plain) == source


@pytest.mark.parametrize("plain", [None, [], {}, DataSource().to_dict() | {"url": "x"}])
def test_plain_values_with_missing_or_unknown_fields_are_refused(plain: Any) -> None:
    with pytest.raises(SettingsError):
        DataSource.from_dict(plain)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", 5),
        ("data", 5),
        ("data_root", None),
        ("class_names", [1, 2]),
        ("class_names", 5),
        ("image_size", 8),
        ("image_size", [8]),
        ("image_size", ["8", "8"]),
        ("channels", "3"),
        ("val_split", 2),
        ("split_seed", "0"),
        ("skip_unreadable", "no"),
    ],
)
def test_plain_values_of_a_wrong_type_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError):
        DataSource.from_dict(DataSource(data="folder").to_dict() | {name: value})


def test_digits_are_1797_images_in_two_parts(digits: Data) -> None:
    assert digits.test is not None
    assert digits.validation is None
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int64
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    assert digits.class_names == tuple("0123456789")
    assert digits.image_spec == ImageSpec(8, 8, 1)


def test_digits_parts_are_the_same_each_time_whatever_the_seed(digits: Data) -> None:
    again = load_data(DataSource(dataset="digits", split_seed=7))

    assert digits.test is not None
    assert again.test is not None
    assert np.array_equal(again.test.images, digits.test.images)
    assert np.array_equal(again.train.labels, digits.train.labels)


def test_digits_parts_hold_the_classes_alike(digits: Data) -> None:
    assert digits.test is not None
    train, test = np.bincount(digits.train.labels), np.bincount(digits.test.labels)

    assert np.abs(test - (train + test) / 5).max() <= 1


def test_the_background_of_idx_files_is_at_their_borders_unless_they_are_a_named_data_set(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, train=12, side=28)
    images = np.full((12, 28, 28), 200, np.uint8)
    images[:, 9, 9] = np.arange(12)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))

    assert load_data(DataSource(data=str(tmp_path))).background == (200, 200, 200)
    assert load_data(DataSource(data=str(tmp_path), background="#102030")).background == (16, 32, 48)
    assert load_data(DataSource(data=str(tmp_path), dataset="fashion-mnist")).background == (0, 0, 0)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_folder_of_idx_files_is_loaded_plain_and_gzipped(tmp_path: Path, ending: str) -> None:
    write_idx_folder(tmp_path, train=12, test=8, side=5, ending=ending)

    data = load_data(DataSource(data=str(tmp_path)))

    assert data.test is not None
    assert data.train.images.shape == (12, 5, 5, 1)
    assert data.train.images.dtype == np.uint8
    assert data.test.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert data.test.labels.dtype == np.int64
    assert np.array_equal(data.train.images[..., 0], read_idx(tmp_path / f"train-images-idx3-ubyte{ending}"))


def test_the_names_that_some_mirrors_give_idx_files_are_found(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, train=12, ending=".gz")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))

    assert len(load_data(DataSource(data=str(tmp_path))).train) == 12


def test_idx_files_may_hold_color(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, train=12, test=8)
    for prefix, count in (("train", 12), ("t10k", 8)):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(
            idx_bytes(np.arange(count * 60, dtype=np.uint8).reshape(count, 4, 5, 3))
        )

    assert load_data(DataSource(data=str(tmp_path))).image_spec.shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("0", "1", "2", "3")),
        ({"class_names": ("ant", "bee", "cat", "dog")}, ("ant", "bee", "cat", "dog")),
        ({"class_names": ("ant", "bee", "cat", "dog", "emu")}, ("ant", "bee", "cat", "dog", "emu")),
        ({"dataset": "mnist"}, tuple("0123456789")),
        (
            {"dataset": "fashion-mnist"},
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        ({"dataset": "kmnist"}, ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    ],
)
def test_classes_are_named_as_asked_or_after_the_data_set(
    tmp_path: Path, options: dict[str, Any], expected: tuple[str, ...]
) -> None:
    write_idx_folder(tmp_path)

    assert load_data(DataSource(data=str(tmp_path), **options)).class_names == expected


def emnist_images(count: int) -> NDArray[np.uint8]:
    """Upright images of 6x6 pixels, each with a line that leads from the upper left to the lower left corner."""
    images = np.zeros((count, 6, 6), np.uint8)
    images[:, :, 0] = np.linspace(50, 250, 6).astype(np.uint8)
    images[:, 5, 5] = np.arange(count) % 250
    return images


def write_emnist(folder: Path, name: str, *, first_label: int = 0, ending: str = "") -> Path:
    """EMNIST's files as NIST and torchvision have them: rows are columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 12), ("test", 8)):
        labels = (np.arange(count) % 4 + first_label).astype(np.uint8)
        for kind, values in (("images-idx3", emnist_images(count).swapaxes(1, 2)), ("labels-idx1", labels)):
            content = idx_bytes(np.ascontiguousarray(values))
            path = folder / f"emnist-{name}-{part}-{kind}-ubyte{ending}"
            path.write_bytes(gzip.compress(content) if ending else content)
    return folder


EMNIST_CLASSES = {
    "balanced": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt",
    "bymerge": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt",
    "byclass": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    "letters": "abcdefghijklmnopqrstuvwxyz",
    "digits": "0123456789",
    "mnist": "0123456789",
}


@pytest.mark.parametrize("is_downloaded", [True, False], ids=["downloaded", "own folder"])
@pytest.mark.parametrize("name", EMNIST_CLASSES)
def test_emnist_is_upright_and_has_its_own_class_names(tmp_path: Path, name: str, is_downloaded: bool) -> None:
    write_emnist(tmp_path / "EMNIST" / "raw", name, first_label=1 if name == "letters" else 0)
    place = {"data_root": str(tmp_path)} if is_downloaded else {"data": str(tmp_path)}
    source = DataSource(dataset=f"emnist-{name}", fit="stretch", **place)  # type: ignore[arg-type]

    data = load_data(source, download=False)

    assert data.test is not None
    assert data.class_names == tuple(EMNIST_CLASSES[name])
    assert (
        data.class_names[:10]
        == tuple(c for c in torchvision.datasets.EMNIST.classes_split_dict[name] if c != "N/A")[:10]
    )
    assert np.array_equal(data.train.images[..., 0], emnist_images(12))
    assert np.array_equal(data.test.images[..., 0], emnist_images(8))
    assert data.test.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_emnist_is_fitted_as_signs(tmp_path: Path) -> None:
    write_emnist(tmp_path / "EMNIST" / "raw", "digits")

    assert load_data(DataSource(dataset="emnist-digits", data_root=str(tmp_path)), download=False).fit == "glyph"


def test_emnist_in_a_folder_must_be_named(tmp_path: Path) -> None:
    for name in ("digits", "letters"):
        write_emnist(tmp_path / "gzip", name, first_label=1, ending=".gz")

    for options in ({}, {"dataset": "mnist"}):
        with pytest.raises(
            DataError, match=r"lie on their sides: emnist-letters, emnist-digits\. Choose one with `data"
        ):
            load_data(DataSource(data=str(tmp_path), **options))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no training images among its IDX files: emnist-digits-test-images"):
        load_data(DataSource(data=str(tmp_path), dataset="emnist-byclass"))
    assert len(load_data(DataSource(data=str(tmp_path), dataset="emnist-letters")).train) == 12


def test_a_label_that_letters_do_not_have_is_refused(tmp_path: Path) -> None:
    write_emnist(tmp_path, "letters", first_label=0)

    with pytest.raises(DataError, match=r"a label is 0, and those of emnist-letters begin with 1"):
        load_data(DataSource(data=str(tmp_path), dataset="emnist-letters"))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"FashionMNIST/raw/{name}",
        lambda name: f"{name}/{name}",
        lambda name: f"shapes-{name}",
        lambda name: name.replace("t10k", "test").replace("-idx", ".idx"),
        lambda name: f"a/b/my_{name}",
    ],
    ids=["torchvision's folder", "a folder per file, as Kaggle has it", "own names", "test", "nested own names"],
)
def test_idx_files_are_found_under_their_own_names_and_nested(tmp_path: Path, rename: Callable[[str], str]) -> None:
    write_idx_folder(tmp_path / "here")
    for path in sorted((tmp_path / "here").iterdir()):
        target = tmp_path / "data" / rename(path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)

    data = load_data(DataSource(data=str(tmp_path / "data")))

    assert data.test is not None
    assert (len(data.train), len(data.test)) == (40, 20)


def test_idx_files_in_the_folder_go_before_nested_ones(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, train=12)
    write_idx_folder(tmp_path / "more", train=20)

    assert len(load_data(DataSource(data=str(tmp_path))).train) == 12


def test_nested_idx_files_of_several_data_sets_are_listed(tmp_path: Path) -> None:
    for name in ("KMNIST", "MNIST"):
        write_idx_folder(tmp_path / name / "raw")

    with pytest.raises(DataError, match=r"several data sets: .*KMNIST/raw/train-images.*MNIST/raw.* Point `data` to"):
        load_data(DataSource(data=str(tmp_path)))


@pytest.mark.parametrize(
    "names", [("images-idx3-ubyte", "labels-idx1-ubyte"), ("digits.ubyte.gz",), ("a/t10k-images-idx3-ubyte",)]
)
def test_idx_files_of_unknown_names_are_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = ", ".join(Path(name).name for name in names)

    with pytest.raises(
        DataError, match=rf"no training images among its IDX files: {found}\. Expected are train-images-"
    ):
        load_data(DataSource(data=str(tmp_path)))


def test_fewer_names_than_classes_are_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path)

    with pytest.raises(DataError, match=r"labels go up to 3, but only 3 classes have names"):
        load_data(DataSource(data=str(tmp_path), class_names=("a", "b", "c")))


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_idx_file_is_named(tmp_path: Path, name: str) -> None:
    write_idx_folder(tmp_path)
    (tmp_path / name).unlink()

    with pytest.raises(DataError, match=name):
        load_data(DataSource(data=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("train-labels-idx1-ubyte", np.zeros(39, np.uint8)),
        ("train-labels-idx1-ubyte", np.zeros((40, 1), np.uint8)),
        ("train-images-idx3-ubyte", np.zeros((40, 36), np.uint8)),
        ("train-images-idx3-ubyte", np.zeros((40, 6, 6, 2), np.uint8)),
        ("t10k-images-idx3-ubyte", np.zeros((20, 6, 7), np.uint8)),
        ("t10k-images-idx3-ubyte", np.zeros((21, 6, 6), np.uint8)),
    ],
)
def test_files_that_do_not_fit_one_another_are_refused(tmp_path: Path, name: str, values: Any) -> None:
    write_idx_folder(tmp_path)
    (tmp_path / name).write_bytes(idx_bytes(values))

    with pytest.raises(DataError, match=str(tmp_path)):
        load_data(DataSource(data=str(tmp_path)))


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, test=0)

    with pytest.raises(DataError, match="test split has no images"):
        load_data(DataSource(data=str(tmp_path)))


def test_images_without_pixels_are_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, side=0)

    with pytest.raises((DataError, SettingsError)):
        _ = load_data(DataSource(data=str(tmp_path), image_size=(8, 8))).image_spec


def test_channels_of_idx_files_cannot_be_chosen(tmp_path: Path) -> None:
    write_idx_folder(tmp_path)

    with pytest.raises(DataError, match="Leave out `channels`"):
        load_data(DataSource(data=str(tmp_path), channels=3))


@pytest.mark.parametrize("options", [{"dataset": "mnist"}, {"class_names": ("a", "b")}])
def test_options_for_idx_files_are_refused_where_there_are_none(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no IDX files here"):
        load_data(DataSource(data=str(tmp_path), **options))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such folder"):
        load_data(DataSource(data=str(tmp_path / "gone")))


@pytest.mark.parametrize("size", [(4, 4), (11, 9), (6, 3)])
def test_image_size_resizes_all_parts_as_the_runtime_does(tmp_path: Path, size: tuple[int, int]) -> None:
    write_idx_folder(tmp_path)
    original = load_data(DataSource(data=str(tmp_path)))

    data = load_data(DataSource(data=str(tmp_path), image_size=size))

    spec = data.image_spec
    assert spec.shape == (*size, 1)
    for part, before in ((data.train, original.train), (data.test, original.test)):
        assert part is not None
        assert before is not None
        assert np.array_equal(part.images, fit_pixels(before.images, spec))
        assert np.array_equal(part.labels, before.labels)


def rows(part: LabeledImages | None) -> list[tuple[bytes, int]]:
    assert part is not None
    return sorted((image.tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True))


def test_validation_is_held_out_of_the_training_part_alone(digits: Data) -> None:
    data = load_data(DataSource(dataset="digits", val_split=0.25))

    assert data.validation is not None
    assert len(data.validation) == 360
    assert rows(data.test) == rows(digits.test)
    assert sorted(rows(data.train) + rows(data.validation)) == rows(digits.train)


def test_validation_holds_the_classes_alike(digits: Data) -> None:
    data = load_data(DataSource(dataset="digits", val_split=0.25))

    assert data.validation is not None
    share = np.bincount(data.validation.labels) / np.bincount(digits.train.labels)
    assert np.abs(share - 0.25).max() < 0.01


def test_the_split_follows_from_its_seed() -> None:
    first, same, other = (
        load_data(DataSource(dataset="digits", val_split=0.2, split_seed=seed)).validation for seed in (1, 1, 2)
    )

    assert first is not None
    assert same is not None
    assert np.array_equal(first.images, same.images)
    assert rows(first) != rows(other)


@pytest.mark.parametrize("val_split", [0.0001, 0.9999])
def test_a_share_that_cannot_hold_every_class_is_refused(val_split: float) -> None:
    with pytest.raises(
        DataError, match=rf"digits: `val_split={val_split:g}` of 1437 images can't be held out: .*on both sides"
    ):
        load_data(DataSource(dataset="digits", val_split=val_split))


def test_a_class_with_one_image_cannot_be_split(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, train=5, classes=4)

    with pytest.raises(DataError, match=r"`val_split=0.5` of 5 images can't be held out: .*only 1 member"):
        load_data(DataSource(data=str(tmp_path), val_split=0.5))


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("kmnist", "KMNIST"), (None, "MNIST")])
def test_what_torchvision_downloaded_is_loaded_without_network(tmp_path: Path, dataset: Any, folder: str) -> None:
    write_idx_folder(tmp_path / folder / "raw", train=30, test=10, side=7)

    data = load_data(DataSource(dataset=dataset, data_root=str(tmp_path)), download=False)

    assert data.test is not None
    assert data.train.images.shape == (30, 7, 7, 1)
    assert data.train.images.dtype == np.uint8
    assert data.test.labels.tolist() == [0, 1, 2, 3] * 2 + [0, 1]
    assert data.test.labels.dtype == np.int64
    assert len(data.class_names) == 10


def test_fashion_mnist_is_the_same_as_torchvision_keeps_it(tmp_path: Path, fashion_mnist: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in fashion_mnist.glob("*.gz"):
        (raw / path.stem).write_bytes(idx_bytes(read_idx(path)))

    kept = load_data(DataSource(dataset="fashion-mnist", data_root=str(tmp_path)), download=False)

    folder = load_data(DataSource(dataset="fashion-mnist", data=str(fashion_mnist)))
    assert kept.class_names == folder.class_names
    for part in ("train", "test"):
        assert np.array_equal(getattr(kept, part).images, getattr(folder, part).images)
        assert np.array_equal(getattr(kept, part).labels, getattr(folder, part).labels)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Path]:
    """A folder that is served at `http://127.0.0.1:<its name>/`."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        folder = tmp_path / str(server.server_port)
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder
        server.shutdown()


def test_a_data_set_is_downloaded_once(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_folder(mirror, train=12, ending=".gz")
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in mirror.iterdir()]
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{mirror.name}/"])
    monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", sums)
    source = DataSource(dataset="kmnist", data_root=str(tmp_path / "data"))

    downloaded = load_data(source)
    shutil.rmtree(mirror)
    again = load_data(source)

    assert len(downloaded.train) == 12
    assert np.array_equal(again.train.images, downloaded.train.images)


def test_a_failed_download_names_the_ways_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the port discard: nothing listens there, so this fails the same with and without network
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])

    with pytest.raises(DataError, match="mnist: could not be downloaded") as error:
        load_data(DataSource(data_root=str(tmp_path)))

    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(tmp_path) in message
    assert '`dataset="digits"`' in message
    assert "point `data` to a folder" in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "answer", [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n<html>Please log in</html>"]
)
def test_a_server_that_answers_nonsense_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])

        with pytest.raises(DataError, match="mnist: could not be downloaded"):
            load_data(DataSource(data_root=str(tmp_path)))

        server.shutdown()


def test_a_download_that_hangs_does_not_hold_up_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored in the background of a shell
            ended.wait()

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_address[1]}/"])

        with pytest.raises(KeyboardInterrupt), signals_noted():
            load_data(DataSource(data_root=str(tmp_path)))

        ended.set()
        server.shutdown()


def test_without_download_a_missing_data_set_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='`dataset="digits"`'):
        load_data(DataSource(dataset="kmnist", data_root=str(tmp_path)), download=False)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0\0\x05", b"letters and more"])
def test_a_damaged_file_of_an_earlier_download_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    raw = write_idx_folder(tmp_path / "MNIST" / "raw")
    (raw / "train-images-idx3-ubyte").write_bytes(content)

    with pytest.raises(DataError, match="mnist"):
        load_data(DataSource(data_root=str(tmp_path)), download=False)


def test_a_damaged_gzip_file_in_a_folder_is_a_data_error(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, ending=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DataError, match=path.name):
        load_data(DataSource(data=str(tmp_path)))


def test_a_plain_file_is_taken_before_a_gzipped_one(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, train=12)
    shutil.copytree(write_idx_folder(tmp_path / "gz", train=20, ending=".gz"), tmp_path, dirs_exist_ok=True)

    assert len(load_data(DataSource(data=str(tmp_path))).train) == 12
