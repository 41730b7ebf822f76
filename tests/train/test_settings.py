"""Training settings: the article's by default, checked when made, and the presets."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.errors import SettingsError
from rnn_train import DataSource, TrainSettings, train
from rnn_train.settings import AUGMENT_PARTS, DATASETS, preset_settings


def test_defaults_are_the_articles() -> None:
    assert TrainSettings().to_dict() == {
        "cell": "rnn",
        "nonlinearity": "tanh",
        "hidden_size": 128,
        "num_layers": 2,
        "bidirectional": False,
        "dropout": 0.0,
        "epochs": 2,
        "patience": 0,
        "batch_size": 100,
        "learning_rate": 0.001,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "label_smoothing": 0.0,
        "class_weights": "none",
        "amp": False,
        "normalize": False,
        "shift": 0,
        "flip": False,
        "augment": [],
        "calibrate": True,
        "seed": 0,
    }
    assert DataSource().val_split == 0
    assert DataSource().name == "mnist"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("epochs", "batch_size") for value in (0, -1, 1.0, True, "2", None, 2**63)),
        *((name, value) for name in ("shift", "seed", "patience") for value in (-1, 0.0, False, "2", None, 2**63)),
        *(
            (name, value)
            for name in ("weight_decay", "clip_norm", "label_smoothing", "learning_rate")
            for value in (-0.001, math.inf, math.nan, True, "0.1", None)
        ),
        ("learning_rate", 0),
        ("label_smoothing", 1),
        ("schedule", "linear"),
        ("schedule", None),
        *(("class_weights", value) for value in ("equal", None, True, 1.0)),
        *((name, value) for name in ("normalize", "flip", "calibrate", "amp") for value in (1, "yes", None)),
        *(("augment", value) for value in (("rotate",), "rotation", True, None)),
    ],
)
def test_values_out_of_range_are_refused_and_named(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        TrainSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cell", "transformer"),
        ("cell", None),
        ("nonlinearity", "sigmoid"),
        *((name, value) for name in ("hidden_size", "num_layers") for value in (0, -1, 1.5, True, "2", None)),
        ("hidden_size", 10**9),
        ("num_layers", 1000),
        ("bidirectional", 1),
        *(("dropout", value) for value in (-0.1, 1, 1.5, math.nan, "0.5", None)),
    ],
)
def test_model_settings_out_of_range_are_refused_before_training(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        train(DataSource(dataset="digits"), TrainSettings(**{name: value}), tmp_path / "model.pt")  # type: ignore[arg-type]

    assert list(tmp_path.iterdir()) == []


SETTINGS = st.builds(
    TrainSettings,
    cell=st.sampled_from(["rnn", "gru", "lstm"]),
    hidden_size=st.integers(1, 512),
    dropout=st.floats(0, 0.9),
    epochs=st.integers(1, 2**63 - 1),
    learning_rate=st.floats(0, 1, exclude_min=True),
    schedule=st.sampled_from(["constant", "one-cycle"]),
    weight_decay=st.floats(0, 10),
    normalize=st.booleans(),
    shift=st.integers(0, 5),
    flip=st.booleans(),
    augment=st.lists(st.sampled_from(AUGMENT_PARTS)).map(tuple),
    amp=st.booleans(),
    class_weights=st.sampled_from(["none", "balanced"]),
    seed=st.integers(0, 2**63 - 1),
)


@given(SETTINGS)
def test_settings_come_back_from_plain_values(settings: TrainSettings) -> None:
    assert TrainSettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        TrainSettings().to_dict() | {"momentum": 0.9},
        {name: value for name, value in TrainSettings().to_dict().items() if name != "seed"},
        dict[Any, Any](TrainSettings().to_dict()) | {1: 2},
        TrainSettings().to_dict() | {"epochs": 0},
    ],
)
def test_missing_and_unknown_fields_are_refused(plain: Any) -> None:
    with pytest.raises(SettingsError):
        TrainSettings.from_dict(plain)


def test_patience_comes_back_from_plain_values() -> None:
    settings = TrainSettings(patience=5)

    assert TrainSettings.from_dict(settings.to_dict()) == settings


def test_patience_is_refused_with_a_one_cycle_schedule() -> None:
    with pytest.raises(SettingsError, match=r'one-cycle.*Choose `schedule="constant"`, or leave out `patience`'):
        TrainSettings(patience=3, schedule="one-cycle")


def test_preset_article_is_the_defaults() -> None:
    assert preset_settings("article") == TrainSettings()


@pytest.mark.parametrize("dataset", [None, *DATASETS])
def test_only_clothes_are_mirrored_by_the_preset_accurate(dataset: Any) -> None:
    assert preset_settings("accurate", dataset).flip == (dataset == "fashion-mnist")
