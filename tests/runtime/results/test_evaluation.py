"""Predictions held against the classes that folders name."""

import numpy as np
import pytest

from rnn_runtime.classifier import Prediction
from rnn_runtime.errors import InputError
from rnn_runtime.results.evaluation import FolderEvaluation

NAMES = ("cat", "dog", "T-shirt/top")


def prediction(truth: str, label: str) -> Prediction:
    return Prediction(f"images/{truth.replace('/', '_')}/a.png", label, 0.9, ((label, 0.9),))


def test_predictions_count_as_the_class_that_their_folder_names() -> None:
    evaluation = FolderEvaluation(NAMES)

    true_labels = [evaluation.add(prediction(*pair)) for pair in (("cat", "cat"), ("cat", "dog"), ("dog", "dog"))]

    assert true_labels == ["cat", "cat", "dog"]
    assert evaluation.figures.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert sum(evaluation.figures.calibration.confidences) == pytest.approx(2.7)


def test_all_classes_of_a_prediction_count_for_top_k_accuracy() -> None:
    evaluation = FolderEvaluation(NAMES)
    for true, ranking in (("cat", ("dog", "cat")), ("dog", ("dog", "cat")), ("T-shirt/top", ("dog", "cat"))):
        top = tuple((label, 0.5) for label in ranking)
        evaluation.add(Prediction(f"{true.replace('/', '_')}/a.png", *top[0], top))

    assert evaluation.figures.top_k_accuracies == {2: pytest.approx(2 / 3)}


def test_unreadable_files_do_not_count() -> None:
    evaluation = FolderEvaluation(NAMES)

    assert evaluation.add(Prediction("cat/a.png", None, None, error="no image")) == "cat"

    assert evaluation.figures.total == 0
    assert np.isnan(evaluation.figures.accuracy)


def test_folders_that_name_no_class_are_counted_apart() -> None:
    evaluation = FolderEvaluation(NAMES)
    for truth in ("mouse", "cat", "rat"):
        evaluation.add(prediction(truth, "cat"))

    assert (evaluation.figures.total, evaluation.unknown, evaluation.first_unknown) == (1, 2, "images/mouse/a.png")
    assert FolderEvaluation(NAMES).label_of("images/mouse/a.png") is None


def test_nearest_folder_that_names_a_class_counts() -> None:
    assert FolderEvaluation(NAMES).label_of("images/dog/cat/2024/a.png") == "cat"


def test_classes_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(InputError, match=r"'a/b' and 'a_b' would share the folder 'a_b'"):
        FolderEvaluation(("a/b", "a_b"))


@pytest.mark.parametrize(
    ("named", "path", "label"),
    [
        ("images", "images/dog/a.png", "dog"),
        ("images/", "images/dog/new/a.png", "dog"),
        ("dog/new", "dog/new/a.png", None),
        ("dog/new", "dog/new/cat/a.png", "cat"),
        ("dog/*/a*.png", "dog/cat/a.png", "cat"),
        ("dog/a.png", "dog/a.png", "dog"),
        (".", "a.png", None),
    ],
)
def test_only_folders_below_what_was_named_are_classes(named: str, path: str, label: str | None) -> None:
    assert FolderEvaluation(NAMES, [named]).label_of(path) == label
