"""A checkpoint in which anything may stand: resuming and exporting it work, or say in a line what is wrong."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnn_export import export_onnx
from rnn_runtime.errors import RnnOnnxError
from rnn_train import DataSource, TrainSettings, train
from tests.support.idx_files import write_idx_folder
from tests.support.training import resume

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70_000)
    | st.sampled_from([10**30, -(10**30), 2**31, 2**63])
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(3, dtype=torch.uint8),
        torch.full((3, 3), torch.nan),
        torch.zeros(1).expand(10**9),
        torch.zeros(5, device="meta"),
        torch.zeros(2).to_sparse(),
        torch.zeros(5056, dtype=torch.uint8),
        torch.nn.Parameter(torch.zeros(2)),
    ]
)
VALUES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3) | st.tuples(inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    source = DataSource(data=str(write_idx_folder(folder / "data", train=20, test=5)), val_split=0.2)
    settings = TrainSettings(hidden_size=2, epochs=2, batch_size=4, schedule="one-cycle")
    train(source, settings, folder / "model.pt", device="cpu", plots=False)
    content = torch.load(folder / "model.pt", weights_only=True)
    assert isinstance(content, dict)
    return content


def draw_change(data: st.DataObject, content: dict[str, Any]) -> tuple[Any, ...]:
    """Replace a value somewhere in nested dictionaries, or remove it; returns where."""
    place: tuple[Any, ...] = ()
    while True:
        key = data.draw(st.sampled_from(sorted(content, key=str)))
        place = (*place, key)
        if isinstance(content[key], dict) and content[key] and data.draw(st.integers(0, 5)):
            content = content[key]
            continue
        if data.draw(st.integers(0, 9)):
            content[key] = data.draw(VALUES)
        else:
            del content[key]
        return place


@given(data=st.data())
@pytest.mark.slow
def test_any_value_is_taken_or_told_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, trained: dict[str, Any], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = copy.deepcopy(trained)
    place = draw_change(data, content)
    if place == ("settings", "epochs"):  # a billion of them would be taken, and trained
        return
    torch.save(content, folder / "hostile.pt")

    for use in (
        lambda path: export_onnx(path, folder / "hostile.onnx"),
        lambda path: resume(path, folder / "resumed.pt"),
    ):
        with contextlib.suppress(RnnOnnxError):
            use(folder / "hostile.pt")


def test_unchanged_it_is_taken(tmp_path: Path, trained: dict[str, Any]) -> None:
    torch.save(trained, tmp_path / "model.pt")

    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")
    result = resume(tmp_path / "model.pt")

    assert result.accuracy is not None
    assert np.isfinite(result.accuracy)
