"""`report.html`: complete, self-contained, safe with any name, readable on a phone; and the files beside it."""

import base64
import csv
import html
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings, train
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import Data, HeldOut, LabeledImages, load_data, write_image_folder
from rnn_train.evaluation import evaluate
from rnn_train.model import ImageRNN
from rnn_train.report import write_metrics, write_reports
from rnn_train.training import TrainResult
from tests.support.commands import run_in_process
from tests.support.html_pages import Element, read_page
from tests.support.training import Recorder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SPEC = ImageSpec(6, 5, 1)
DIGITS = DataSource(dataset="digits")
HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "train_accuracy": 1 - 1 / epoch,
        "validation_loss": 2 / epoch,
        "validation_accuracy": 0.5,
        "seconds": 0.5,
    }
    for epoch in (1, 2)
]
HOSTILE = (
    "<script>document.title = 'changed'</script>",
    '"><img src=x onerror="document.title=1">',
    "{{ 7 * 7 }} & ant's",
    "a\nb\x1b[31m\u202e",
    "caf\udce9",
    "long" * 60,
    "$\\frac{$ 猫",
)


def split(
    labels: Sequence[int], predicted: Sequence[int], spec: ImageSpec, *, paths: Sequence[str] = ()
) -> tuple[LabeledImages, NDArray[np.float32]]:
    """Images that are predicted so, the first with the highest probability, and their logits."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *spec.shape), np.uint8)
    logits = np.zeros((len(labels), max(*labels, *predicted) + 1), np.float32)
    logits[np.arange(len(labels)), predicted] = np.linspace(4, 1, len(labels))
    return LabeledImages(images, np.array(labels, np.int64), tuple(paths)), logits


def write(
    folder: Path,
    class_names: tuple[str, ...],
    *found: tuple[LabeledImages, NDArray[np.float32]],
    name_of_split: HeldOut = "test",
    image_spec: ImageSpec = SPEC,
    name: str = "model.pt",
    calibrate: bool = True,
) -> str:
    """Write a report about these results; gives its text."""
    channels = image_spec.channels
    spec = ModelSpec(image_spec, class_names, hidden_size=2, mean=(0.0,) * channels, std=(1.0,) * channels)
    train_images = LabeledImages(np.zeros((2, *image_spec.shape), np.uint8), np.array([0, 1]))
    data, logits = Data(train_images, None, None, class_names), {}
    for images, narrow in found:
        data = replace(data, **{name_of_split: images})  # type: ignore[arg-type]
        logits[name_of_split] = _widened(narrow, len(class_names))
    results = evaluate(data, logits, calibrate=calibrate)
    checkpoint = Checkpoint(
        spec=spec,
        weights=ImageRNN(spec).state_dict(),
        settings=TrainSettings(hidden_size=2),
        source=DIGITS,
        metrics={"epochs": HISTORY, "kept_epoch": 2, **results.metrics()},
        samples=torch.zeros(1, *image_spec.shape, dtype=torch.uint8),
        resume_state={},
        temperature=results.temperature,
    )
    checkpoint.save(folder / name)
    write_reports(folder / name, checkpoint, data, results)
    return (folder / "report.html").read_text(encoding="utf-8")


def _widened(logits: NDArray[np.float32], classes: int) -> NDArray[np.float32]:
    return np.pad(logits, ((0, 0), (0, classes - logits.shape[1])), constant_values=-5)


def section(page: Element, name: str) -> Element:
    (found,) = page.find("section", id=name)
    return found


def rows(element: Element) -> list[list[str]]:
    return [[cell.text for cell in row.content if isinstance(cell, Element)] for row in element.find("tr")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A folder with a small run on image files, in which a report was written, and the run's result."""
    folder = tmp_path_factory.mktemp("run")
    digits = load_data(DIGITS)
    assert digits.test is not None
    for name, images in (("train", digits.train), ("val", digits.train), ("test", digits.test)):
        write_image_folder(
            folder / "it's data" / name, images.images[:100], images.labels[:100], [f"no. {i}" for i in range(10)]
        )
    source = DataSource(data=str(folder / "it's data"))
    settings = TrainSettings(hidden_size=16, epochs=3, learning_rate=0.01)
    return folder, train(source, settings, folder / "my run" / "model.pt", device="cpu")


def test_a_finished_run_has_a_report_with_its_results(trained: tuple[Path, TrainResult]) -> None:
    folder, result = trained

    page = read_page((folder / "my run" / "report.html").read_text(encoding="utf-8"))

    assert result.accuracy is not None
    assert f"accuracy{100 * result.accuracy:.1f} %" in section(page, "results").text.replace("accuracy ", "accuracy")
    names = [element.attributes["id"] for element in page.find("section")]
    assert names == ["results", "curves", "calibration", "classes", "confusion", "mistakes", "data", "settings", "use"]
    assert len(section(page, "curves").find("svg")) == 2
    assert rows(section(page, "data"))[1:] == [
        ["training", "100", "training"],
        ["validation", "100", "choosing the epoch that is kept, and the temperature"],
        ["test", "100", "the figures above, once, at the end"],
    ]
    assert "hidden size16" in section(page, "settings").text.replace("size ", "size")
    assert f"temperature of {result.checkpoint.temperature:.3f}" in section(page, "calibration").text


def test_the_commands_of_a_report_run_as_they_are(trained: tuple[Path, TrainResult]) -> None:
    folder, _ = trained
    page = read_page((folder / "my run" / "report.html").read_text(encoding="utf-8"))

    *lines, python = [element.content for element in section(page, "use").find("code") if len(element.text) > 20]
    printed = []
    for line in lines:
        command, *arguments = shlex.split("".join(map(str, line)))
        result = run_in_process(command, *arguments, folder=folder)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
    exec("".join(map(str, python)), {})

    assert "Within tolerance" in printed[0]
    assert "agree with PyTorch" in printed[1]
    assert "Macro F1" in printed[3].replace("macro", "Macro")


def test_a_report_loads_and_runs_nothing(trained: tuple[Path, TrainResult]) -> None:
    text = (trained[0] / "my run" / "report.html").read_text(encoding="utf-8")
    page = read_page(text)

    assert not page.find("script") + page.find("link") + page.find("iframe") + page.find("object")
    for element in page.find():
        assert not any(name.startswith("on") for name in element.attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert element.attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_a_run_replaces_the_reports_of_an_earlier_run(tmp_path: Path) -> None:
    for name in ("report.html", "examples.png"):
        (tmp_path / name).write_bytes(b"of an earlier run")

    page = read_page(write(tmp_path, ("cat", "dog")))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "report.html"]
    assert "No images were held out" in section(page, "results").text
    assert not page.find("section", id="classes") + page.find("section", id="mistakes")


def test_without_plots_earlier_reports_stay_and_a_message_names_them(tmp_path: Path) -> None:
    report, recorder = tmp_path / "report.html", Recorder()
    report.write_bytes(b"of an earlier run")

    for _ in range(2):  # the second finds the run complete
        train(
            DIGITS,
            TrainSettings(hidden_size=4, epochs=1),
            tmp_path / "m.pt",
            resume="auto",
            device="cpu",
            callback=recorder,
            plots=False,
        )

    assert report.read_bytes() == b"of an earlier run"
    assert recorder.messages.count("Of an earlier run, and left as they were: report.html") == 1


def test_metrics_have_a_row_an_epoch_and_a_column_a_quantity(tmp_path: Path) -> None:
    write_metrics(tmp_path, HISTORY)

    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == HISTORY
    assert b"\r" not in (tmp_path / "metrics.csv").read_bytes()


def test_validation_is_drawn_as_a_second_curve(tmp_path: Path) -> None:
    curves = section(read_page(write(tmp_path, ("cat", "dog"))), "curves").find("svg")

    assert ["train" in curve.text and "validation" in curve.text for curve in curves] == [True, True]


@pytest.mark.parametrize(
    ("labels", "predicted", "channels", "red"),
    [((0, 1, 1), (0, 1, 1), 1, False), ((0, 1) * 50, (0, 0) * 50, 3, True)],
    ids=["three, all right", "a hundred in color, half of them wrong"],
)
def test_examples_show_images_and_mark_wrong_ones(
    tmp_path: Path, labels: tuple[int, ...], predicted: tuple[int, ...], channels: int, red: bool
) -> None:
    spec = ImageSpec(6, 5, channels)

    write(tmp_path, ("cat", "dog"), split(labels, predicted, spec), image_spec=spec)

    with Image.open(tmp_path / "examples.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] == (198 if len(labels) < 9 else 5 * 198)  # dots: rows of 1.8 inches
    assert (pixels == (220, 20, 60)).all(axis=2).any() == red  # crimson


@pytest.mark.filterwarnings("error")  # warnings would stand among the command's lines
def test_names_of_classes_and_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    labels = range(len(HOSTILE))
    paths = [f"photos/{name}/a.png" for name in HOSTILE]
    usual = write(tmp_path, tuple(f"class {i}" for i in labels), split(labels, labels[::-1], SPEC))

    page = read_page(write(tmp_path, HOSTILE, split(labels, labels[::-1], SPEC, paths=paths)))

    shown = [name if name.isprintable() else name.encode("unicode_escape").decode() for name in HOSTILE]
    assert [element.tag for element in page.find("title") + page.find("section")] == [
        element.tag for element in read_page(usual).find("title") + read_page(usual).find("section")
    ]
    assert not page.find("script")
    assert len(page.find("img")) == len(read_page(usual).find("img")) == 6  # the fourth name is predicted rightly
    assert page.find("title")[0].text == "model.pt: training report"
    assert [row[0] for row in rows(section(page, "classes"))[1:]] == shown
    found = {element.attributes.get("title") for element in section(page, "mistakes").find("div")}
    assert {f"photos/{name}/a.png" for name in shown} - found == {f"photos/{shown[3]}/a.png"}


def test_mistakes_are_shown_from_the_most_confident_with_picture_and_file(tmp_path: Path) -> None:
    labels, predicted = [0] * 16, [0, 1] * 8
    found = split(labels, predicted, ImageSpec(6, 5, 3), paths=[f"photos/cat/{i}.png" for i in range(16)])

    mistakes = section(read_page(write(tmp_path, ("cat", "dog"), found, image_spec=ImageSpec(6, 5, 3))), "mistakes")

    captions = [element.text for element in mistakes.find("figcaption")]
    assert len(captions) == 8
    assert all(text.startswith("predicted dog is cat ") for text in captions)
    assert [re.findall(r"(\d+)\.png", text)[0] for text in captions] == [str(i) for i in range(1, 16, 2)]
    shares = [float(re.findall(r"([\d.]+) %", text)[0]) for text in captions]
    assert shares == sorted(shares, reverse=True)
    picture = base64.b64decode(mistakes.find("img")[3].attributes["src"].partition(",")[2])
    with Image.open(io.BytesIO(picture)) as image:
        assert (np.asarray(image) == found[0].images[7]).all()


def test_large_pictures_are_made_small(tmp_path: Path) -> None:
    spec = ImageSpec(400, 200, 3)

    text = write(tmp_path, ("cat", "dog"), split((0, 1), (1, 1), spec), image_spec=spec)

    (picture,) = section(read_page(text), "mistakes").find("img")
    with Image.open(io.BytesIO(base64.b64decode(picture.attributes["src"].partition(",")[2]))) as image:
        assert image.size == (80, 160)


def test_a_model_that_predicts_one_class_for_everything_is_pointed_out(tmp_path: Path) -> None:
    page = read_page(write(tmp_path, ("cat", "dog"), split((0, 1), (1, 1), SPEC)))

    assert "The model predicts dog for every image, whatever it shows." in section(page, "results").text


def test_without_mistakes_the_report_says_so(tmp_path: Path) -> None:
    page = read_page(write(tmp_path, ("cat", "dog"), split((0, 1), (0, 1), SPEC)))

    assert "There are none: all 2 images are right." in section(page, "mistakes").text


def test_the_most_frequent_confusions_of_many_classes_are_listed(tmp_path: Path) -> None:
    labels = [*range(150), 3, 3]

    page = read_page(write(tmp_path, tuple(f"class {i}" for i in range(150)), split(labels, [*labels[1:], 4], SPEC)))

    confusions = rows(section(page, "confusion"))
    assert confusions[:2] == [["true", "predicted", "images", "of its class"], ["class 3", "class 4", "2", "66.7 %"]]
    assert len(confusions) == 21
    assert len(rows(section(page, "classes"))) == 151


@pytest.mark.parametrize(
    ("calibrate", "count", "diagrams"), [(True, 56, ["before", "after"]), (False, 8, ["not calibrated"])]
)
def test_calibration_is_drawn_before_and_after(
    tmp_path: Path, calibrate: bool, count: int, diagrams: list[str]
) -> None:
    found = split([0, 1, 0, 1] * (count // 4), [0, 1, 0, 0] * (count // 4), SPEC)

    text = write(tmp_path, ("cat", "dog"), found, name_of_split="validation", calibrate=calibrate)

    figures = section(read_page(text), "calibration").find("svg")
    assert len(figures) == len(diagrams)
    for figure, title in zip(figures, diagrams, strict=True):
        assert f"{title}: error " in figure.text
    assert ("--no-calibrate" in text) == (not calibrate)
    assert ("for the same images" in text) == calibrate


@pytest.mark.parametrize("name", ["-a b's $(touch x).pt", "\\101' café\".pt"])
def test_names_are_quoted_for_the_shell(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = read_page(write(Path(), ("cat", "dog"), split((0, 1), (1, 1), SPEC), name=name))

    words = section(page, "use").find("pre")[0].text.removeprefix("rnn-export ")
    shell = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True)

    checkpoint, model, _ = shell.stdout.split(b"\0")
    assert Path(os.fsdecode(checkpoint)).samefile(name)
    assert not checkpoint.startswith(b"-")
    assert Path(os.fsdecode(model)) == Path(name).with_suffix(".onnx")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("names", [HOSTILE, tuple(f"class number {i}" for i in range(14))], ids=["hostile", "many"])
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path: Path, width: int, names: tuple[str, ...]) -> None:
    labels = [i % len(names) for i in range(60)]
    spec = ImageSpec(48, 64, 3)
    paths = [f"photos/{names[label]}/some folder/{'x' * 60}.png" for label in labels]
    report = write(tmp_path, names, split(labels, labels[::-1], spec, paths=paths), image_spec=spec)
    # The page that holds the report measures it: the report itself lets no script run.
    measure = """
        const page = document.getElementById("report").contentDocument, root = page.documentElement
        const boxes = [...page.querySelectorAll(".scroll")]
        document.title = JSON.stringify({
          title: page.title, width: root.clientWidth, needed: root.scrollWidth,
          broken: [...page.images].filter(image => !image.naturalWidth).length, images: page.images.length,
          inside: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
        })"""
    (tmp_path / "frame.html").write_text(
        f"<iframe id=report style='width: {width}px; height: 900px; border: 0' "
        f"srcdoc='{html.escape(report)}'></iframe>"
        f"<script>onload = () => {{{measure}}}</script>",
        encoding="utf-8",
    )

    line = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*line, f"--window-size={width + 50},1000", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        timeout=300,
        check=True,
    )

    found = re.search(r"<title>(.*?)</title>", shown.stdout.decode())
    assert found
    facts = json.loads(html.unescape(found[1]))
    assert facts["title"] == "model.pt: training report"
    assert facts["needed"] <= facts["width"] <= width
    assert (facts["broken"], facts["images"]) == (0, 24)
    assert facts["inside"] >= 1 or width > 390
