"""Metadata to texts and back, and what happens to damaged ones."""

import base64
import io
import json
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rnn_runtime.errors import ModelError
from rnn_runtime.model.file import GoldenSamples, ModelMetadata
from rnn_runtime.model.spec import ImageSpec, ModelSpec

SPEC = ModelSpec(ImageSpec(4, 3, 1), ("ä", "b / c"))
GOLDEN = GoldenSamples(
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3, 1), np.array([[0.1, -3e-20], [1e20, 0]], np.float32)
)
METADATA = ModelMetadata(SPEC, GOLDEN, "ab" * 32, {"test_accuracy": 0.5}, {"opset": 17}, {"rows": []}, 1.7)


def arrays(**values: NDArray[Any]) -> str:
    file = io.BytesIO()
    cast(Any, np.savez_compressed)(file, **values)  # numpy's stubs take a name for its option allow_pickle
    return base64.b64encode(file.getvalue()).decode()


def test_metadata_survives_to_the_last_bit() -> None:
    read = ModelMetadata.from_props(METADATA.to_props())

    assert read.spec == SPEC
    assert (read.metrics, read.export, read.parity) == (METADATA.metrics, METADATA.export, METADATA.parity)
    assert (read.checkpoint_sha256, read.temperature) == (METADATA.checkpoint_sha256, METADATA.temperature)
    assert np.array_equal(read.golden.images, GOLDEN.images)
    assert read.golden.logits.tobytes() == GOLDEN.logits.tobytes()


@pytest.mark.parametrize("props", [{}, {"format": "something else"}])
def test_models_of_other_programs_are_told_apart(props: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="not a model that rnn-export wrote"):
        ModelMetadata.from_props(props)


@pytest.mark.parametrize("version", ["1", "6", "8", "", "6.0", "9" * 999])
def test_unknown_format_versions_are_refused(version: str) -> None:
    with pytest.raises(ModelError, match=f"format version .{version[:9]}.*; this one reads 7"):
        ModelMetadata.from_props(METADATA.to_props() | {"format_version": version})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("depth_range", value) for value in ([0], [5, 5], [9, 2], [0, 1 << 16], [-40_000, 0], "0-5", [0.0, 1.0])),
        ("invert", True),
    ],
)
def test_an_input_that_no_training_has_is_damage(field: str, value: object) -> None:
    props = METADATA.to_props()
    model = json.loads(props["model"])
    model["image_spec"][field] = value

    with pytest.raises(ModelError, match=f"damaged.*{field.replace('_', '.')}"):
        ModelMetadata.from_props(props | {"model": json.dumps(model)})


@pytest.mark.parametrize("key", sorted(set(METADATA.to_props()) - {"format", "format_version", "model_sha256"}))
def test_missing_text_is_named(key: str) -> None:
    props = METADATA.to_props()
    del props[key]

    with pytest.raises(ModelError, match=f"lacks '{key}'"):
        ModelMetadata.from_props(props)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model", "{"),
        ("model", "[]"),
        ("metrics", "[]"),
        ("parity", "[" * 100_000),
        *(("temperature", text) for text in ("", "0", "-1", "NaN", "Infinity", "true", '"1"', "[1]", "1e999")),
        ("golden_samples", "?"),
        ("golden_samples", base64.b64encode(b"no archive").decode()),
        ("golden_samples", arrays(images=GOLDEN.images)),
        ("golden_samples", arrays(images=GOLDEN.images[:, :2], logits=GOLDEN.logits)),
        ("golden_samples", arrays(images=GOLDEN.images, logits=GOLDEN.logits[:1])),
        ("golden_samples", arrays(images=GOLDEN.images[:0], logits=GOLDEN.logits[:0])),
        ("golden_samples", arrays(images=GOLDEN.images, logits=np.array(["a", object()], object))),
    ],
)
def test_damaged_text_is_a_model_error(key: str, text: str) -> None:
    with pytest.raises(ModelError, match="damaged"):
        ModelMetadata.from_props(METADATA.to_props() | {key: text})


@given(st.sampled_from(sorted(METADATA.to_props())), st.data())
def test_mutated_text_is_read_or_a_model_error(key: str, data: st.DataObject) -> None:
    text = METADATA.to_props()[key]
    position = data.draw(st.integers(0, len(text)))
    changed = text[:position] + data.draw(st.text(max_size=3)) + text[position + data.draw(st.integers(0, 3)) :]

    try:
        metadata = ModelMetadata.from_props(METADATA.to_props() | {key: changed})
    except ModelError:
        return
    assert metadata.golden.images.shape[1:] == metadata.spec.image_spec.shape
