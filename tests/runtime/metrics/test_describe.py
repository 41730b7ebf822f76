"""Evaluations as text: every figure, in 80 columns, for any number of classes and any name."""

import io
from collections.abc import Callable
from typing import IO

import numpy as np
import pytest

from rnn_runtime.metrics.describe import describe_figures, print_classes, print_confusion, print_evaluation
from rnn_runtime.metrics.evaluation import Evaluation


def printed(show: Callable[[Evaluation, IO[str]], None], evaluation: Evaluation) -> list[str]:
    """The lines, without the frames of tables."""
    file = io.StringIO()
    show(evaluation, file)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return [" ".join(line.replace("│", " ").split()) for line in lines]


def random_evaluation(classes: int, name: str = "class {}", images: int = 5000) -> Evaluation:
    evaluation = Evaluation(tuple(name.format(i) for i in range(classes)))
    generator = np.random.default_rng(0)
    for true in generator.integers(0, classes, images).tolist():
        predicted = true if generator.random() < 0.7 else (true + 1) % classes
        evaluation.add(true, [predicted, (predicted + 1) % classes], 0.8)
    return evaluation


def test_printed_evaluation_shows_every_figure() -> None:
    evaluation = Evaluation(("cat", "dog", "T-shirt/top"))
    for true, predicted in ((0, 0), (0, 1), (1, 1), (1, 1)):
        evaluation.add(true, [predicted, 2], 0.75)

    assert printed(print_evaluation, evaluation)[:4] == [
        "Accuracy: 75.00 % (3 of 4 images right)",
        "Baseline: 50.00 % (the share of the largest class, cat)",
        "Balanced accuracy: 75.00 %, macro F1: 73.33 %",
        "Top-2 accuracy: 75.00 %",
    ]
    lines = printed(print_evaluation, evaluation)[4:]
    assert "Expected calibration error: 0.00 %" in lines
    assert "cat 100.0 % 50.0 % 66.7 % 2" in lines
    assert "dog 66.7 % 100.0 % 80.0 % 2" in lines
    assert "T-shirt/top - - - 0" in lines
    assert "true 0 1 2" in lines
    assert "0 cat 1 1 ." in lines


def test_a_model_that_predicts_one_class_for_everything_is_pointed_out() -> None:
    evaluation = Evaluation(("cat", "dog"))
    for true in (0, 0, 1):
        evaluation.add(true, [0], 0.9)

    lines = list(describe_figures(evaluation))

    assert "The model predicts cat for every image, whatever it shows" in lines
    assert lines[0] == "Baseline: 66.67 % (the share of the largest class, cat)"


@pytest.mark.parametrize("classes", [2, 10, 12])
@pytest.mark.parametrize(
    "name", ["{}", "a very long name of a class, number {}", "\x1b[31m{}\n", "caf\udce9 {}", "猫{}"]
)
def test_a_dozen_classes_fit_80_columns_with_their_matrix(classes: int, name: str) -> None:
    evaluation = random_evaluation(classes, name)

    lines = printed(print_evaluation, evaluation)

    assert "Confusion matrix (columns: predicted)" in lines
    matrix = lines[lines.index("true " + " ".join(map(str, range(classes)))) + 1 :]
    assert [line.split()[0] for line in matrix] == [str(i) for i in range(classes)]
    assert not any("\x1b" in line for line in lines)


def test_of_many_classes_the_weakest_and_the_most_frequent_confusions_are_shown() -> None:
    evaluation = random_evaluation(200)

    classes, confusion = printed(print_classes, evaluation), printed(print_confusion, evaluation)

    assert classes[0] == "The 20 of 200 classes with the lowest F1"
    weakest = min(range(200), key=lambda i: float(evaluation.f1[i]))
    assert any(line.startswith(f"class {weakest} ") for line in classes)
    assert sum(line.startswith("class ") for line in classes) == 20
    true, predicted, count = evaluation.confusions[0]
    assert confusion[0] == "The most frequent confusions"
    share = f"{100 * count / evaluation.support[true]:.1f} %"
    assert f"class {true} class {predicted} {count} {share}" in confusion
    assert sum(line.startswith("class ") for line in confusion) == 10


def test_many_classes_without_confusions_have_no_table_of_them() -> None:
    evaluation = Evaluation(tuple(map(str, range(200))))
    evaluation.add(3, [3], 0.9)
    file = io.StringIO()

    print_confusion(evaluation, file)

    assert file.getvalue() == ""


def test_an_evaluation_without_predictions_has_no_lines() -> None:
    assert list(describe_figures(Evaluation(("cat", "dog")))) == []
