"""Folders as a network storage, a Mac, Windows and a phone leave them: the same images count everywhere."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from tests.support.commands import Run
from tests.support.image_folders import write_classes, write_photo
from tests.support.results import read_results

CLASSES = ("café", "dog")
QUICK = ("--epochs", "1", "--no-plots", "--image-size", "8")


def network_storage(folder: Path) -> None:
    for name in CLASSES:
        write_photo(folder / name / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_XL.png")
    write_photo(folder / "@eaDir" / "dog" / "thumb.png")
    write_photo(folder / "#recycle" / "old.png")


def mac(folder: Path) -> None:
    (folder / "café").rename(folder / unicodedata.normalize("NFD", "café"))
    (folder / "dog" / ".DS_Store").touch()
    (folder / "dog" / "._0.png").write_bytes(b"Mac OS X")
    (folder / "__MACOSX" / "dog").mkdir(parents=True)
    (folder / "__MACOSX" / "dog" / "1.png").touch()


def windows(folder: Path) -> None:
    (folder / "dog" / "0.png").rename(folder / "dog" / "0.PNG")
    for name in ("Thumbs.db", "desktop.ini"):
        (folder / "dog" / name).touch()
    write_photo(folder / "$RECYCLE.BIN" / "S-1-5" / "old.png")
    (folder / "System Volume Information").mkdir()


def phone(folder: Path) -> None:
    register_heif_opener()
    for suffix, format in ((".HEIC", "HEIF"), (".jpg", "HEIF"), (".jfif", "JPEG"), (".avif", "AVIF")):
        image = folder / "dog" / "1.png"
        Image.open(image).convert("RGB").resize((64, 64)).save(folder / "dog" / f"IMG{format}{suffix}", format)
    for i in range(1, 5):
        (folder / "dog" / f"{i}.png").unlink()


@pytest.mark.parametrize("leave", [network_storage, mac, windows, phone])
def test_training_evaluation_and_classification_count_the_same_images(
    run: Run, tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    for split in ("train", "val"):
        write_classes(tmp_path / "photos" / split, count=12, names=CLASSES)
    leave(tmp_path / "photos" / "train")

    trained = run("rnn-train", "--data", "photos", *QUICK)
    run("rnn-export", "model.pt", "model.onnx")
    classified = run("rnn-infer", "-r", "-o", "all.csv", "photos/train")
    line = ("--labels-from-folders", "-o", "labeled.csv", "--summary", "summary.json", "photos/train")
    evaluated = run("rnn-infer", *line)

    assert trained.returncode == 0, trained.stderr
    assert "photos: 24 training, 24 validation images" in trained.stderr
    assert (classified.returncode, evaluated.returncode) == (0, 0), evaluated.stderr
    assert len(read_results(tmp_path / "all.csv")) == len(read_results(tmp_path / "labeled.csv")) == 24
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["images"], summary["not_evaluated"], summary["ignored"]) == (24, 0, {})
    assert "gnored" not in trained.stderr + classified.stderr


def test_what_is_left_out_is_said_in_training_and_inference(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnn_runtime.images.find._has_heif", lambda: False)
    write_classes(tmp_path / "photos", count=12)
    for name in ("a.heic", "b.HEIC", "c.psd", "d", "e", "f", "g.cr2", "h.mp4", "i.nef", "j.txt"):
        (tmp_path / "photos" / "ant" / name).touch()

    trained = run("rnn-train", "--data", "photos", *QUICK)
    run("rnn-export", "model.pt", "model.onnx")
    classified = run("rnn-infer", "-r", "--summary", "summary.json", "photos")

    said = "gnored 10 files: 3 without an extension, 2 .heic, 1 .cr2, 1 .mp4, 1 .nef, 2 others. To read .heic: pip "
    assert f"photos: i{said}install pillow-heif\n" in trained.stderr
    assert f"I{said}install pillow-heif\n" in classified.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["ignored"][".heic"] == 2


def test_without_its_package_a_heic_image_of_another_name_says_what_is_missing(
    run: Run, tmp_path: Path, digits_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_heif_opener()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", "HEIF")
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)

    result = run("rnn-infer", "-m", digits_model, "--format", "csv", "a.jpg")

    assert result.returncode == 1
    assert "a HEIC image, which needs another package: pip install pillow-heif" in result.stdout


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b""])
def test_a_list_of_names_may_begin_with_a_mark(run: Run, tmp_path: Path, digits_model: Path, start: bytes) -> None:
    write_photo(tmp_path / "a.png")

    result = run("rnn-infer", "-m", digits_model, "--format", "csv", "-", input=start + b"a.png\r\n")

    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[1].startswith("a.png,")


def test_a_list_of_names_in_utf_16_is_refused_by_name(run: Run, digits_model: Path) -> None:
    result = run("rnn-infer", "-m", digits_model, "-", input="a.png\n".encode("utf-16"))

    assert result.returncode == 2
    assert result.stderr.startswith("Error: -: the list of names is in UTF-16. Save it as UTF-8")


def test_a_folder_that_is_named_like_a_pattern_may_hold_a_pattern(run: Run, tmp_path: Path, digits_model: Path) -> None:
    write_photo(tmp_path / "photos [2024]" / "a.png")

    result = run("rnn-infer", "-m", digits_model, "--format", "csv", "photos [2024]/*.png")

    assert result.stdout.splitlines()[1].startswith("photos [2024]/a.png,")


def test_a_linked_class_folder_is_read_as_in_training(run: Run, tmp_path: Path, digits_model: Path) -> None:
    write_classes(tmp_path / "elsewhere", count=3)
    (tmp_path / "photos").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "elsewhere" / name)

    result = run("rnn-infer", "-m", digits_model, "--format", "csv", "-r", "photos")

    assert len(result.stdout.splitlines()) == 1 + 6


def test_two_folders_that_macos_would_take_for_one_are_refused(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=2, names=("café", "dog"))
    shutil.copytree(tmp_path / "photos" / "café", tmp_path / "photos" / unicodedata.normalize("NFD", "café"))

    result = run("rnn-train", "--data", "photos", *QUICK)

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "has two folders 'café', in two forms of Unicode" in result.stderr


@pytest.mark.slow
def test_a_phones_largest_photo_is_read_at_a_part_of_its_size(run: Run, tmp_path: Path, digits_model: Path) -> None:
    photo = Image.new("L", (12000, 9000), 200)
    photo.save(tmp_path / "a.jpg")
    photo.save(tmp_path / "b.jpg", progressive=True)
    photo.save(tmp_path / "c.png", compress_level=1)

    result = run("rnn-infer", "-m", digits_model, "--format", "csv", "a.jpg", "b.jpg", "c.png")

    small, progressive, png = result.stdout.splitlines()[1:]
    assert small.endswith(",")
    for refused in (progressive, png):
        assert "the image has more than 67108864 pixels, the limit" in refused


def test_an_archive_or_an_address_on_the_web_is_no_data(run: Run, tmp_path: Path, digits_model: Path) -> None:
    (tmp_path / "photos.zip").touch()

    archive = run("rnn-train", "--data", "photos.zip")
    address = run("rnn-infer", "-m", digits_model, "https://example.com/a.png")

    assert archive.stderr == "Error: photos.zip: an archive. Unpack it, and point --data to the folder\n"
    assert address.stderr.startswith(
        "Error: https://example.com/a.png: nothing is downloaded from a web site. Download it first: curl -O https://"
    )
