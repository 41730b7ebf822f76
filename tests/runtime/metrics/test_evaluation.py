"""The figures of an evaluation are those of scikit-learn."""

import json
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from rnn_runtime.metrics.evaluation import Evaluation

NAMES = ("cat", "dog", "owl", "pig")
CLASSES = range(len(NAMES))
# true class, all classes from the likeliest, and the probability of the likeliest
PREDICTIONS = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.permutations(list(CLASSES)), st.floats(0.25, 1)), min_size=1
)

few_examples = settings(max_examples=settings().max_examples // 4)  # scikit-learn takes 10 ms each


def evaluate(predictions: Sequence[tuple[int, Sequence[int], float]]) -> Evaluation:
    evaluation = Evaluation(NAMES)
    for true, ranking, probability in predictions:
        evaluation.add(true, ranking, probability)
    return evaluation


def of_pairs(*pairs: tuple[int, int]) -> Evaluation:
    return evaluate([(true, [predicted], 0.5) for true, predicted in pairs])


@few_examples
@given(PREDICTIONS)
def test_figures_of_all_images_are_those_of_scikit_learn(predictions: list[tuple[int, list[int], float]]) -> None:
    evaluation = evaluate(predictions)

    true, predicted = [true for true, _, _ in predictions], [ranking[0] for _, ranking, _ in predictions]
    assert np.array_equal(evaluation.confusion, metrics.confusion_matrix(true, predicted, labels=CLASSES))
    assert evaluation.accuracy == pytest.approx(metrics.accuracy_score(true, predicted))
    assert evaluation.macro_f1 == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted classes without images
        assert evaluation.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
    assert (evaluation.total, evaluation.correct) == (len(true), np.equal(true, predicted).sum())


@few_examples
@given(PREDICTIONS)
def test_figures_of_each_class_are_those_of_scikit_learn(predictions: list[tuple[int, list[int], float]]) -> None:
    evaluation = evaluate(predictions)

    true, predicted = [true for true, _, _ in predictions], [ranking[0] for _, ranking, _ in predictions]
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=CLASSES, zero_division=np.nan)
    found = (evaluation.precision, evaluation.recall, evaluation.f1, evaluation.support)
    for values, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, others)


@few_examples
@given(PREDICTIONS)
def test_top_k_accuracy_is_that_of_scikit_learn(predictions: list[tuple[int, list[int], float]]) -> None:
    evaluation = evaluate([(true, ranking[:3], probability) for true, ranking, probability in predictions])

    # the likeliest class has the highest score
    scores = np.array([[-ranking.index(i) for i in CLASSES] for _, ranking, _ in predictions])
    true = [true for true, _, _ in predictions]
    expected = metrics.top_k_accuracy_score(true, scores, k=3, labels=list(CLASSES))
    assert evaluation.top_k_accuracies == {3: pytest.approx(expected)}


@pytest.mark.parametrize(("ranked", "ks"), [(1, []), (2, [2]), (3, [3]), (7, [3, 5, 7]), (8, [3, 5])])
def test_top_k_accuracies_are_shown_for_what_was_ranked_and_says_something(ranked: int, ks: list[int]) -> None:
    evaluation = Evaluation(tuple("abcdefgh"))
    evaluation.add(7, list(range(ranked)), 0.5)

    assert list(evaluation.top_k_accuracies) == ks


def test_the_largest_class_is_the_baseline() -> None:
    assert of_pairs((0, 1), (1, 1), (1, 2), (2, 1)).largest_class == ("dog", 0.5)


@pytest.mark.parametrize(
    ("pairs", "only"),
    [
        ([(0, 1), (1, 1), (2, 1)], "dog"),
        ([(0, 1), (1, 1), (2, 2)], None),
        ([(1, 1), (1, 1)], None),  # right, as far as one knows
        ([(0, 1)], None),
    ],
)
def test_one_class_for_images_of_several_is_found(pairs: list[tuple[int, int]], only: str | None) -> None:
    assert of_pairs(*pairs).only_prediction == only


def test_confusions_are_sorted_by_frequency() -> None:
    evaluation = of_pairs((0, 1), (2, 3), (2, 3), (1, 1), (1, 1), (0, 2))

    assert evaluation.confusions == [(2, 3, 2), (0, 1, 1), (0, 2, 1)]


def test_without_predictions_figures_are_not_a_number() -> None:
    evaluation = Evaluation(NAMES)

    assert all(math.isnan(value) for value in (evaluation.accuracy, evaluation.balanced_accuracy, evaluation.macro_f1))
    figures = evaluation.to_dict()
    assert (figures["evaluated"], figures["accuracy"], figures["macro_f1"]) == (0, None, None)


def test_all_figures_are_json_values() -> None:
    evaluation = evaluate([(0, [0, 1, 2], 0.75), (1, [0, 2, 1], 0.5), (1, [1, 0, 2], 1.0)])

    figures = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))

    assert figures == {
        "evaluated": 3,
        "correct": 2,
        "accuracy": pytest.approx(2 / 3),
        "largest_class": "dog",
        "largest_class_share": pytest.approx(2 / 3),
        "only_prediction": None,
        "balanced_accuracy": 0.75,
        "macro_f1": pytest.approx(2 / 3),
        "top_k_accuracies": {"3": 1.0},
        "expected_calibration_error": pytest.approx(0.25),
        "classes": [
            {"label": "cat", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
            {"label": "dog", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
            {"label": "owl", "precision": None, "recall": None, "f1": None, "support": 0},
            {"label": "pig", "precision": None, "recall": None, "f1": None, "support": 0},
        ],
    }


def test_memory_does_not_grow_with_classes_squared() -> None:
    evaluation = Evaluation(tuple(map(str, range(100_000))))  # a matrix of them would take 80 GB

    for true in range(1000):
        evaluation.add(true, [true + 1], 0.5)

    assert (evaluation.total, evaluation.correct, len(evaluation.confusions)) == (1000, 0, 1000)
    assert evaluation.macro_f1 == 0
