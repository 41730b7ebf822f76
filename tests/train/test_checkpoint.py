"""The checkpoint file: it comes back as it was, and a file that is none does no harm."""

import io
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.errors import CheckpointError
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint, file_sha256
from rnn_train.data import DataSource
from rnn_train.settings import TrainSettings
from tests.support.checkpoints import random_checkpoint

SPEC = ModelSpec(ImageSpec(5, 4, 3), ("ant", "bee"), "gru", hidden_size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    random_checkpoint(SPEC).save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The bytes of a whole checkpoint."""
    file = io.BytesIO()
    checkpoint = random_checkpoint(SPEC)
    content = {
        "format": "rnn-onnx checkpoint",
        "format_version": 6,
        "model": SPEC.to_dict(),
        "weights": dict(checkpoint.weights),
        "settings": checkpoint.settings.to_dict(),
        "source": checkpoint.source.to_dict(),
        "metrics": {"epochs": []},
        "samples": checkpoint.samples,
        "resume_state": {},
        "temperature": None,
    }
    torch.save(content, file)
    return file.getvalue()


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = replace(
        random_checkpoint(SPEC),
        settings=TrainSettings(cell="gru", hidden_size=4, epochs=7, learning_rate=0.5, seed=2**40),
        source=DataSource(data="photos", image_size=(5, 4), val_split=0.25, split_seed=3),
        metrics={"epochs": [{"epoch": 1, "train_loss": 0.5}], "validation_accuracy": 0.75},
        resume_state={"epoch": 1, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "cuda_generators": []},
    )

    saved.save(tmp_path / "model.pt")
    loaded = Checkpoint.load(tmp_path / "model.pt")

    for name in ("spec", "settings", "source", "metrics", "resume_state"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert torch.equal(loaded.samples, saved.samples)
    assert list(loaded.weights) == list(saved.weights)
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in saved.weights.items())


def test_the_model_of_a_checkpoint_has_its_weights(path: Path) -> None:
    checkpoint = Checkpoint.load(path)

    model = checkpoint.build_model()

    assert not model.training
    assert all(torch.equal(tensor, checkpoint.weights[name]) for name, tensor in model.state_dict().items())


def test_building_a_model_draws_no_random_numbers(path: Path) -> None:
    checkpoint = Checkpoint.load(path)
    before = torch.get_rng_state()

    checkpoint.build_model()

    assert torch.equal(torch.get_rng_state(), before)


class Hostile:
    """Pickled, it asks for a file to be made when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["format", "weights", "metrics", "samples", "resume_state", "temperature"])
def test_code_in_a_checkpoint_does_not_run(path: Path, tmp_path: Path, place: str) -> None:
    target = tmp_path / "harm"
    edit(path, lambda content: content.update({place: Hostile(target)}))

    with pytest.raises(CheckpointError, match=r"model\.pt: not a checkpoint, or a damaged one"):
        Checkpoint.load(path)

    assert not target.exists()


def test_code_in_a_plain_pickle_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "harm"
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"weights": Hostile(target)}, protocol=2))

    with pytest.raises(CheckpointError):
        Checkpoint.load(tmp_path / "model.pt")

    assert not target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data())
def test_a_checkpoint_cut_short_is_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.pt"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])

    with pytest.raises(CheckpointError, match=r"cut\.pt: "):
        Checkpoint.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data())
def test_a_checkpoint_with_changed_bytes_never_gives_others(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=5)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    path.write_bytes(damaged)

    with suppress(CheckpointError):
        found, expected = Checkpoint.load(path), random_checkpoint(SPEC)
        assert found.spec == expected.spec
        assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())
        assert torch.equal(found.samples, expected.samples)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(content=st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\x80\x02" + tail))
def test_random_bytes_are_a_checkpoint_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pt"
    path.write_bytes(content)

    with pytest.raises(CheckpointError):
        Checkpoint.load(path)


# what torch.load raises IndexError, struct.error and more for
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b".", b"K", b"J\0", b"\x80\x02R.", b"\x80\x02]K\x01s.", b"PK\x03\x04"])
def test_short_pickles_are_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"model\.pt: "):
        Checkpoint.load(tmp_path / "model.pt")


def test_a_file_that_is_no_checkpoint_brings_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"weights": 1}))

    with suppress(CheckpointError):
        Checkpoint.load(tmp_path / "model.pt")

    assert [str(warning.message) for warning in recwarn] == []


def test_an_archive_that_is_compressed_is_refused(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry))
        bomb.writestr("model/data/99", bytes(100_000_000))

    with pytest.raises(CheckpointError, match="compressed"):
        Checkpoint.load(tmp_path / "bomb.pt")


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")

    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint.load(tmp_path / "model.pt")


def test_a_missing_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pt: no such file\. .*rnn-train"):
        Checkpoint.load(tmp_path / "model.pt")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, "text", torch.zeros(2)])
def test_what_other_programs_save_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(CheckpointError, match="not a checkpoint that rnn-train wrote"):
        Checkpoint.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        (5, r"a checkpoint of another rnn-onnx: format version 5, and this one reads 10\. Train again, or upgrade"),
        ("6", "a checkpoint of another rnn-onnx: format version '6', and"),
        (None, "a checkpoint of another rnn-onnx: format version None, and"),
    ],
)
def test_another_format_version_is_named(path: Path, version: object, problem: str) -> None:
    edit(path, lambda content: content.update(format_version=version))

    with pytest.raises(CheckpointError, match=problem):
        Checkpoint.load(path)


@pytest.mark.parametrize("name", ["patience", "class_weights", "augment", "calibrate", "amp"])
def test_a_setting_that_is_missing_is_named(path: Path, name: str) -> None:
    edit(path, lambda content: content["settings"].pop(name))

    with pytest.raises(CheckpointError, match=f"damaged checkpoint.*{name}"):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    "key", ["model", "weights", "settings", "source", "metrics", "samples", "resume_state", "temperature"]
)
def test_what_is_missing_is_named(path: Path, key: str) -> None:
    edit(path, lambda content: content.pop(key))

    with pytest.raises(CheckpointError, match=f"lacks '{key}'"):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["weights"].update({"linear.bias": torch.zeros(3)}),
        lambda content: content["weights"].update({"linear.bias": torch.zeros(2, dtype=torch.float64)}),
        lambda content: content["weights"].update({"linear.bias": [0.0, 0.0]}),
        lambda content: content["weights"].update({"more": torch.zeros(1)}),
        lambda content: content["weights"].pop("linear.bias"),
        lambda content: content.update(weights=[1]),
        lambda content: content.update(samples=torch.zeros(3, 5, 4, 3)),
        lambda content: content.update(samples=torch.zeros(3, 5, 4, 1, dtype=torch.uint8)),
        lambda content: content.update(samples=torch.zeros((), dtype=torch.uint8)),
        lambda content: content.update(samples=None),
        lambda content: content.update(samples=torch.zeros(0, 5, 4, 1, dtype=torch.uint8)),
        lambda content: content["weights"].update({"linear.bias": torch.zeros(1).expand(2)}),
        lambda content: content["weights"].update({"linear.bias": torch.zeros(2).to_sparse()}),
        lambda content: content["weights"].update({"linear.bias": torch.zeros(2, requires_grad=True)}),
        lambda content: content["weights"].update({"linear.bias": torch.nn.Parameter(torch.zeros(2))}),
        lambda content: content["weights"].update({"linear.bias": torch.zeros(2, device="meta")}),
        lambda content: content.update(metrics=[]),
        lambda content: content.update(metrics={}),
        lambda content: content.update(metrics={"epochs": 5}),
        lambda content: content.update(metrics={"epochs": [3]}),
        lambda content: content.update(metrics={"epochs": [{"train_loss": "low"}]}),
        lambda content: content.update(metrics={"epochs": [], "test_accuracy": float("nan")}),
        lambda content: content.update(metrics={"epochs": [], "test_accuracy": torch.zeros(2)}),
        lambda content: content.update(metrics={"epochs": [], 1: 1}),
        lambda content: content["model"].update(hidden_size=10**600),
        lambda content: content.update(resume_state=None),
        *(
            lambda content, value=value: content.update(temperature=value)
            for value in (0.0, -1.0, 1e-3, 101.0, float("nan"), float("inf"), 1, True, "1", [1.0], torch.ones(()))
        ),
        lambda content: content.update(model=3),
        lambda content: content["model"].update(cell="transformer"),
        lambda content: content["model"].update(hidden_size=5),
        lambda content: content["model"].update(hidden_size=65536, num_layers=64),
        lambda content: content["model"].update(class_names="ab"),
        lambda content: content["model"]["image_spec"].update(height=0),
        lambda content: content["model"]["image_spec"].update(invert=True),
        lambda content: content["model"].pop("mean"),
        lambda content: content["settings"].update(epochs=0),
        lambda content: content["settings"].update(momentum=0.9),
        lambda content: content["source"].update(val_split=1),
        lambda content: content["source"].pop("data"),
    ],
)
def test_contents_that_do_not_fit_are_a_checkpoint_error(
    path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(path, change)

    with pytest.raises(CheckpointError, match=r"model\.pt: a damaged checkpoint"):
        Checkpoint.load(path)


def test_a_save_that_fails_leaves_the_old_checkpoint_alone(path: Path) -> None:
    before = path.read_bytes()
    checkpoint = replace(random_checkpoint(SPEC), metrics={"epochs": [], "report": lambda: None})

    with pytest.raises((pickle.PicklingError, AttributeError)):  # which one, depends on Python's version
        checkpoint.save(path)

    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_output_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        random_checkpoint(SPEC).save(tmp_path / "gone" / "model.pt")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_checkpoint_may_be_read_by_those_whom_the_umask_lets(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        random_checkpoint(SPEC).save(tmp_path / "model.pt")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == mode


def test_sha256_is_that_of_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")

    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
