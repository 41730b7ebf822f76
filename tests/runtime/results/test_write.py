"""Predictions as CSV, JSON Lines and tables."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from rnn_runtime.classifier import Prediction
from rnn_runtime.results.write import Columns, Format, open_writer, read_predictions

GOOD = Prediction("a.png", "7", 0.75, (("7", 0.75), ("1", 0.25)))
BAD = Prediction("b.png", None, None, error="the file is empty")

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
formulas = st.builds(str.__add__, st.sampled_from(["=", "+", "-", "@", "\t", "\r", "'", "'="]), texts)


def written(
    format: Format, *predictions: Prediction, columns: Columns | None = None, true_label: str | None = None
) -> str:
    file, columns = io.StringIO(), columns or Columns()
    with open_writer(file, format, columns) as write:
        write([columns.row(prediction, true_label) for prediction in predictions])
    return file.getvalue()


def test_csv_has_a_header_and_a_row_a_file() -> None:
    assert written("csv", GOOD, BAD) == ("path,label,probability,error\na.png,7,0.750000,\nb.png,,,the file is empty\n")


def test_csv_with_top_k_and_truth_has_their_columns() -> None:
    text = written("csv", GOOD, BAD, columns=Columns(top_k=2, true_label=True), true_label="1")

    assert text.splitlines() == [
        "path,label,probability,label_2,probability_2,true_label,error",
        "a.png,7,0.750000,1,0.250000,1,",
        "b.png,,,,,1,the file is empty",
    ]


def test_jsonl_has_an_object_a_line() -> None:
    rows = [json.loads(line) for line in written("jsonl", GOOD, BAD, columns=Columns(top_k=2)).splitlines()]

    assert rows[0] == {
        "path": "a.png", "label": "7", "probability": 0.75, "label_2": "1", "probability_2": 0.25, "error": None
    }  # fmt: skip
    assert rows[1]["error"] == "the file is empty"
    assert rows[1]["label"] is None


@given(texts, texts)
def test_any_name_survives_csv_and_jsonl(path: str, label: str) -> None:
    prediction = Prediction(path, label, 0.5, ((label, 0.5),))

    # a csv file's reader must not translate line ends, as the csv module's documentation says
    (row,) = csv.DictReader(io.StringIO(written("csv", prediction), newline=""))
    assert (row["path"], row["label"]) == (path, label)
    assert json.loads(written("jsonl", prediction))["path"] == path


@given(texts)
def test_names_cannot_break_a_table_or_control_the_terminal(path: str) -> None:
    plain = written("table", Prediction("a.png", "7", 0.5, (("7", 0.5),)))

    text = written("table", Prediction(path, "7", 0.5, (("7", 0.5),)))

    assert text.count("\n") == plain.count("\n")
    assert "\x1b" not in text


def test_a_table_shortens_long_paths_in_the_middle_and_fits_80_columns() -> None:
    path = "folder/" * 40 + "a.png"
    top = tuple((label, 0.3) for label in ("Ankle boot", "T-shirt/top", "Sneaker"))

    text = written("table", Prediction(path, *top[0], top), columns=Columns(top_k=3))

    assert max(map(len, text.splitlines())) <= 80
    assert "…" in text
    assert "/a.png" in text
    for label, _ in top:
        assert f"{label} 0.3000" in text


def test_probabilities_have_fewer_digits_where_a_table_would_be_too_wide() -> None:
    top = tuple(("T-shirt/top", 0.3333) for _ in range(3))

    text = written("table", Prediction("folder/" * 40 + "a.png", *top[0], top), columns=Columns(top_k=3))

    assert max(map(len, text.splitlines())) <= 80
    assert text.count("T-shirt/top 0.33") == 3


@given(st.text(st.sampled_from("猫写真éa"), min_size=60, max_size=120))
def test_a_table_counts_the_columns_of_wide_letters(name: str) -> None:
    text = written("table", Prediction(name, "cat", 0.5, (("cat", 0.5),)))

    header, row = text.splitlines()
    assert cell_len(row[: row.index(" cat")]) == header.index(" label")
    assert max(cell_len(header), cell_len(row)) <= 80
    assert text.count("…") == (cell_len(name) > 80 - cell_len("  label  probability  error"))


@pytest.mark.parametrize("count", [1000, 1001, 3000])
def test_a_table_is_lines_of_aligned_columns(count: int) -> None:
    rows = [Prediction(f"folder/{i}.png", "7", 0.5, (("7", 0.5),)) for i in range(count - 1)]
    lines = written("table", *rows, Prediction("b.png", None, None, error="broken")).splitlines()

    assert lines[0].split() == ["path", "label", "probability", "error"]
    assert [line.split() for line in lines[1:-1]] == [[row.path, "7", "0.5000"] for row in rows]
    assert {line.index("7 ", 14) for line in lines[1:-1]} == {lines[0].index("label")}
    assert lines[-1].split() == ["b.png", "broken"]
    assert lines[-1].index("broken") == lines[0].index("error")


def test_what_a_long_table_did_not_measure_is_shortened_if_a_path_and_never_cut_otherwise() -> None:
    later = Prediction("folder/猫" * 40 + "a.png", "Ankle boot", 0.5, (("Ankle boot", 0.5),))
    text = written("table", *[GOOD] * 1000, later, Prediction("b.png", None, None, error="a long error " * 9))

    *_, first, second = text.splitlines()
    assert "…" in first
    assert first.split()[1:] == ["Ankle", "boot", "0.5000"]
    assert ("a long error " * 9).strip() in second


@pytest.mark.parametrize(("style", "held"), [("csv", 0), ("jsonl", 0), ("table", 1000)])
def test_rows_are_written_as_they_come(style: Format, held: int) -> None:
    file = io.StringIO()
    lengths = []
    with open_writer(file, style, Columns()) as write:
        for _ in range(held + 3):
            write([Columns().row(GOOD)])
            lengths.append(len(file.getvalue()))

    assert set(lengths[:held]) <= {0}
    assert lengths[held:] == sorted(set(lengths[held:]))


@given(path=formulas, label=formulas)
def test_no_cell_is_a_formula_if_that_is_asked_for(path: str, label: str) -> None:
    columns = Columns(csv_safe=True)
    rows = list(csv.reader(io.StringIO(written("csv", Prediction(path, label, 0.75), columns=columns))))

    assert [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []


@pytest.mark.parametrize("style", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize(
    "columns",
    [
        Columns(),
        Columns(top_k=2, true_label=True, checkpoint="ab"),
        Columns(top_k=2, min_probability=0.9),
        Columns(csv_safe=True),
    ],
)
@given(path=texts | formulas, label=texts | formulas)
def test_what_was_written_is_read_back(style: Format, columns: Columns, path: str, label: str) -> None:
    top = ((label, 0.75), ("1", 0.25))[: columns.top_k]
    predictions = [Prediction(path, *top[0], top), Prediction(path, None, None, error=label)]
    content = written(style, *predictions, columns=columns, true_label="2").encode()

    assert list(read_predictions(io.BytesIO(content), style, columns, "a.csv")) == predictions
