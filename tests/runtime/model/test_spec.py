"""The model's description: what it accepts, and its way to plain values and back."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.errors import SettingsError
from rnn_runtime.model.spec import CELLS, NONLINEARITIES, ImageSpec, ModelSpec

DIGITS = ModelSpec(ImageSpec(8, 8, 1), tuple("0123456789"))

numbers = st.floats(-1e6, 1e6)


@st.composite
def model_specs(draw: st.DrawFn) -> ModelSpec:
    channels = draw(st.sampled_from([1, 3]))
    return ModelSpec(
        image_spec=ImageSpec(
            draw(st.integers(1, 4096)),
            draw(st.integers(1, 4096)),
            channels,
            draw(st.none() | st.tuples(st.integers(-32768, 0), st.integers(1, 65535))),
        ),
        class_names=tuple(draw(st.lists(st.text(min_size=1), min_size=2, max_size=20, unique=True))),
        cell=draw(st.sampled_from(CELLS)),
        nonlinearity=draw(st.sampled_from(NONLINEARITIES)),
        hidden_size=draw(st.integers(1, 65536)),
        num_layers=draw(st.integers(1, 64)),
        bidirectional=draw(st.booleans()),
        dropout=draw(st.floats(0, 1, exclude_max=True)),
        mean=tuple(draw(st.lists(numbers, min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(st.floats(1e-6, 1e6), min_size=channels, max_size=channels))),
    )


@given(model_specs())
def test_any_description_survives_json(spec: ModelSpec) -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(json_values)
def test_any_other_value_is_a_settings_error(value: object) -> None:
    with pytest.raises(SettingsError):
        ModelSpec.from_dict(value)


@given(st.sampled_from(sorted(DIGITS.to_dict())), json_values)
def test_any_value_in_any_field_is_taken_or_a_settings_error(field: str, value: object) -> None:
    plain = DIGITS.to_dict() | {field: value}

    try:
        spec = ModelSpec.from_dict(plain)
    except SettingsError:
        return
    assert spec.to_dict()[field] == value


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cell": "transformer"}, "`cell` must be one of rnn, gru, lstm"),
        ({"nonlinearity": "sigmoid"}, "`nonlinearity` must be one of tanh, relu"),
        ({"hidden_size": 0}, "`hidden_size` must be a whole number from 1"),
        ({"hidden_size": True}, "`hidden_size` must be a whole number"),
        ({"num_layers": 65}, "`num_layers` must be a whole number from 1 to 64"),
        ({"bidirectional": 1}, "`bidirectional` must be true or false"),
        ({"dropout": 1.0}, "`dropout` must be a number at least 0 and less than 1"),
        ({"dropout": float("nan")}, "`dropout` must be a number at least 0 and less than 1"),
        ({"class_names": ("a",)}, "2 to 100000 classes, not 1"),
        ({"class_names": ("a", "")}, "non-empty texts"),
        ({"class_names": ("a", "b", "a")}, "'a' occurs twice"),
        ({"mean": (0.0, 0.0)}, "mean must have a value for each of 1 channels"),
        ({"mean": (float("inf"),)}, "`mean` must be a list, each a finite number, not"),
        ({"std": (0.0,)}, "`std` must be a list, each a number above 0, not"),
    ],
)
def test_values_out_of_range_name_the_field(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        replace(DIGITS, **changes)


@pytest.mark.parametrize("shape", [(0, 8, 1), (8, 4097, 1), (8, 8, 2), (8, 8.0, 1), (8, 8, True)])
def test_images_out_of_range_are_refused(shape: tuple[Any, Any, Any]) -> None:
    with pytest.raises(SettingsError, match=r"image (height|width|channels)"):
        ImageSpec(*shape)


def test_input_size_counts_the_channels_of_a_row() -> None:
    assert replace(DIGITS, image_spec=ImageSpec(5, 7, 3), mean=(0.0,) * 3, std=(1.0,) * 3).input_size == 21
