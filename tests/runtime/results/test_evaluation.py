"""Accuracy, precision, recall and confusion matrix from folders' names."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score

from rnn_runtime.classifier import Prediction
from rnn_runtime.errors import InputError
from rnn_runtime.images.class_folders import FolderLabels
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.results.write import print_evaluation

NAMES = ("cat", "dog", "T-shirt/top")


def prediction(truth: str, label: str) -> Prediction:
    return Prediction(f"images/{truth.replace('/', '_')}/a.png", label, 0.9, ((label, 0.9),))


@settings(max_examples=settings().max_examples // 4)  # scikit-learn takes 10 ms each
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1))
def test_figures_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    evaluation = FolderEvaluation(NAMES)
    for pair in pairs:
        evaluation.add(prediction(*pair))

    true, predicted = zip(*pairs, strict=True)
    options = {"labels": NAMES, "average": None, "zero_division": np.nan}
    assert np.array_equal(evaluation.confusion, confusion_matrix(true, predicted, labels=NAMES))
    assert evaluation.accuracy == pytest.approx(accuracy_score(true, predicted))
    assert np.allclose(evaluation.precision, precision_score(true, predicted, **options), equal_nan=True)
    assert np.allclose(evaluation.recall, recall_score(true, predicted, **options), equal_nan=True)


def test_unreadable_files_do_not_count() -> None:
    evaluation = FolderEvaluation(NAMES)

    assert evaluation.add(Prediction("cat/a.png", None, None, error="no image")) == "cat"

    assert evaluation.total == 0
    assert np.isnan(evaluation.accuracy)


def test_folders_that_name_no_class_are_counted_apart() -> None:
    evaluation = FolderEvaluation(NAMES)
    for truth in ("mouse", "cat", "rat"):
        evaluation.add(prediction(truth, "cat"))

    assert (evaluation.total, evaluation.unknown, evaluation.first_unknown) == (1, 2, "images/mouse/a.png")
    assert FolderLabels(NAMES).label_of("images/mouse/a.png") is None


def test_nearest_folder_that_names_a_class_counts() -> None:
    assert FolderLabels(NAMES).label_of("images/dog/cat/2024/a.png") == "cat"


def test_classes_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(InputError, match=r"'a/b' and 'a_b' would share the folder 'a_b'"):
        FolderEvaluation(("a/b", "a_b"))


def test_relative_names_count_as_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dog").mkdir()
    monkeypatch.chdir(tmp_path / "dog")

    assert FolderLabels(NAMES).label_of("a.png") == "dog"


def test_printed_evaluation_shows_every_figure() -> None:
    evaluation = FolderEvaluation(NAMES)
    for pair in (("cat", "cat"), ("cat", "dog"), ("dog", "dog"), ("dog", "dog")):
        evaluation.add(prediction(*pair))
    file = io.StringIO()

    print_evaluation(evaluation, file)

    lines = [" ".join(line.replace("│", " ").split()) for line in file.getvalue().splitlines()]
    assert lines[0] == "Accuracy: 75.00 % (3 of 4 images right)"
    assert "cat 100.0 % 50.0 % 2" in lines
    assert "dog 66.7 % 100.0 % 2" in lines
    assert "T-shirt/top - - 0" in lines
    assert "cat 1 1 ." in lines
