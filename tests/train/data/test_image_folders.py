"""Folders of images, a folder a class: which files count, and that training sees what serving sees."""

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from rnn_runtime.errors import DataError, InputError, SettingsError
from rnn_runtime.model.spec import ImageSpec
from rnn_train.data import Data, DataSource, load_data, write_image_folder
from rnn_train.data.folders import list_classes, load_images
from tests.support.encoded_images import pattern, pixels_of, to_image
from tests.support.image_folders import write_classes, write_photo


def load(folder: Path, **options: Any) -> Data:
    return load_data(DataSource(data=str(folder), **options))


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_classes(tmp_path, names=("bee", "ant", "Cat"))

    data = load(tmp_path)

    assert data.class_names == ("Cat", "ant", "bee")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.labels.dtype == np.int64
    assert data.image_spec.shape == (6, 5, 1)
    assert data.test is None
    assert data.validation is None


def test_folders_train_and_test_are_the_parts(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", count=3)
    write_photo(tmp_path / "test" / "bee" / "0.png")

    data = load(tmp_path)

    assert data.test is not None
    assert data.class_names == ("ant", "bee")
    assert len(data.train) == 6
    assert data.test.labels.tolist() == [1]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
@pytest.mark.parametrize("with_test", [False, True])
def test_a_folder_of_validation_images_is_the_validation_split(tmp_path: Path, name: str, with_test: bool) -> None:
    write_classes(tmp_path / "train", count=3)
    write_photo(tmp_path / name / "bee" / "0.png", seed=7)
    if with_test:
        write_classes(tmp_path / "test", count=1)

    data = load(tmp_path)

    assert data.validation is not None
    assert data.validation.labels.tolist() == [1]
    assert np.array_equal(data.validation.images[0], pixels_of(tmp_path / name / "bee" / "0.png", data.image_spec))
    assert len(data.train) == 6
    assert (data.test is not None) == with_test


def test_image_size_and_channels_are_those_of_all_splits(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_photo(tmp_path / "val" / "bee" / "0.png", channels=3)
    write_photo(tmp_path / "test" / "ant" / "0.png", height=9)

    data = load(tmp_path, image_size=(4, 3))

    splits = (data.train, data.validation, data.test)
    assert {split.images.shape[1:] for split in splits if split is not None} == {(4, 3, 3)}


def test_unreadable_images_of_any_split_are_left_out_with_their_labels(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_classes(tmp_path / split, count=2)
        (tmp_path / split / "ant" / "0.png").write_bytes(b"no image")

    data = load(tmp_path, skip_unreadable=True)

    for images in (data.train, data.validation, data.test):
        assert images is not None
        assert images.labels.tolist() == [0, 1, 1]


def test_a_class_without_a_readable_image_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for path in (tmp_path / "bee").iterdir():
        path.write_bytes(b"no image")

    with pytest.raises(
        DataError, match=r"of the class 'bee', no image can be decoded, the first: .*/bee/0\.png: not an image in a"
    ):
        load(tmp_path, skip_unreadable=True)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/self", "."),
        ("train/self", ".."),
        ("train/self", "../.."),
        ("train/ant again", "ant"),
        ("train/ant again", "ant/young"),
        ("train/a", "ant"),
        ("train/other", "../val"),
        ("train/other", "../val/bee"),
        ("val/wasp", "../train/wasp"),
    ],
)
def test_a_class_folder_that_is_a_link_into_the_same_data_is_refused(tmp_path: Path, link: str, target: str) -> None:
    folder = tmp_path / "photos"
    write_classes(folder / "train", names=("ant", "bee", "wasp"))
    write_photo(folder / "train" / "ant" / "young" / "0.png")
    write_classes(folder / "val")
    (folder / link).symlink_to(target)

    with pytest.raises(DataError, match=f"/{link}: a link to .* in several classes or splits. Remove the link"):
        load(folder)


def test_links_to_one_folder_elsewhere_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "store")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "ant").symlink_to("../store/ant")
    (tmp_path / "photos" / "bee").symlink_to("../store")

    with pytest.raises(DataError, match=r"/photos/bee: a link to images of .*/photos/ant, so"):
        load(tmp_path / "photos")


def test_class_folders_may_be_links_to_folders_elsewhere(tmp_path: Path) -> None:
    write_classes(tmp_path / "store")
    (tmp_path / "store" / "ant" / "back").symlink_to(tmp_path)
    write_classes(tmp_path / "photos" / "train", names=("cat", "dog"))
    for name in ("ant", "bee"):
        (tmp_path / "photos" / "train" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "link").symlink_to("photos")

    data = load(tmp_path / "link")

    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_two_folders_of_validation_images_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        write_classes(tmp_path / name)

    with pytest.raises(DataError, match=r"val and valid are all for validation\. Keep one of them"):
        load(tmp_path)


def test_val_split_beside_a_folder_of_validation_images_is_refused(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_classes(tmp_path / name, count=4)

    with pytest.raises(DataError, match=r"/val: holds the validation images already\. Leave out `val_split`"):
        load(tmp_path, val_split=0.5)


@pytest.mark.parametrize(("split", "images"), [("val", "validation"), ("test", "test")])
def test_classes_that_are_not_trained_are_refused_by_name(tmp_path: Path, split: str, images: str) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / split, names=("ant", "hornet", "wasp"))

    with pytest.raises(
        DataError, match=f"/{split}: {images} images, but no training images, for the classes 'hornet' and 'wasp'"
    ):
        load(tmp_path)


def test_a_class_named_differently_in_another_split_is_pointed_out(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", names=("ant", "Bee"))

    with pytest.raises(DataError, match=r"val/Bee: this class is 'bee' in .*/train\. Give both the same name"):
        load(tmp_path)


def test_images_of_several_sizes_need_image_size(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_photo(tmp_path / "bee" / "large.png", height=30, width=40)

    with pytest.raises(DataError) as error:
        load(tmp_path)

    for part in ("6x5", "30x40", "`image_size`", "large.png"):
        assert part in str(error.value)


def test_image_size_brings_all_to_one_size(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_photo(tmp_path / "bee" / "large.png", height=30, width=40)

    data = load(tmp_path, image_size=(9, 7))

    assert data.train.images.shape == (5, 9, 7, 1)


def test_one_image_in_color_makes_three_channels(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_photo(tmp_path / "bee" / "color.png", channels=3)

    data = load(tmp_path)

    assert data.image_spec.channels == 3
    gray = data.train.images[0]
    assert (gray == gray[..., :1]).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [None, (4, 4)])
def test_channels_can_be_chosen(tmp_path: Path, channels: int, image_size: tuple[int, int] | None) -> None:
    write_classes(tmp_path)
    write_photo(tmp_path / "bee" / "color.png", channels=3)

    assert load(tmp_path, channels=channels, image_size=image_size).image_spec.channels == channels


def test_other_channels_than_gray_and_rgb_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path)

    with pytest.raises(SettingsError, match="channels"):
        load(tmp_path, channels=4)


@pytest.mark.parametrize("image_size", [None, (4, 4)])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, image_size: tuple[int, int] | None) -> None:
    write_classes(tmp_path)
    (tmp_path / "bee" / "broken.png").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"1 of 5 images.*broken\.png.*`skip_unreadable=True`"):
        load(tmp_path, image_size=image_size)


def test_skip_unreadable_leaves_out_the_file_and_its_label(tmp_path: Path) -> None:
    write_classes(tmp_path, names=("ant", "bee", "cat"))
    (tmp_path / "bee" / "0.png").write_bytes(b"no image")

    data = load(tmp_path, skip_unreadable=True)

    assert data.train.labels.tolist() == [0, 0, 1, 2, 2]
    assert np.array_equal(data.train.images[2], pixels_of(tmp_path / "bee" / "1.png", data.image_spec))


@pytest.mark.parametrize("options", [{}, {"image_size": (6, 5)}, {"image_size": (6, 5), "channels": 1}])
@pytest.mark.parametrize("skip_unreadable", [False, True])
def test_a_folder_without_any_readable_image_is_a_data_error(
    tmp_path: Path, skip_unreadable: bool, options: dict[str, Any]
) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"no image")

    with pytest.raises(DataError):
        load(tmp_path, skip_unreadable=skip_unreadable, **options)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "wasp").mkdir()

    with pytest.raises(DataError, match="wasp: no image files"):
        load(tmp_path)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    write_photo(tmp_path / "0.png")

    with pytest.raises(DataError, match=r"images, but no class folders\. Move .* into a folder named after it"):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_directly_in_a_split_are_refused(tmp_path: Path, split: str) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    for name in ("ant", "bee"):
        shutil.rmtree(tmp_path / split / name)
    write_photo(tmp_path / split / "0.png")

    with pytest.raises(DataError, match=rf"/{split}: images, but no class folders.*such as .*/{split}/cat"):
        load(tmp_path)


def test_a_folder_with_nothing_in_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folders in it\. It needs one folder of images per class"):
        load(tmp_path)


def test_the_folder_above_the_data_points_to_the_data(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos" / "train")
    write_classes(tmp_path / "photos" / "test")

    with pytest.raises(DataError, match=r'only one class folder, .photos..*Did you mean `data=".*/photos"`\?'):
        load(tmp_path)


def test_images_beside_the_class_folders_are_noted(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_photo(tmp_path / "0.png")
    write_photo(tmp_path / "train" / "1.png")
    write_photo(tmp_path / "train" / "2.png")

    assert load(tmp_path).notes == (
        f"{tmp_path}: left out, because not in a class folder: 0.png",
        f"{tmp_path}/train: left out, because not in a class folder: 1.png and 1 more",
    )


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, names=("ant",))

    with pytest.raises(DataError, match="only one class folder, 'ant'"):
        load(tmp_path)


def test_hidden_folders_and_other_files_do_not_count(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_photo(tmp_path / ".thumbnails" / "0.png")
    write_photo(tmp_path / "bee" / ".hidden.png")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "bee" / "notes.txt").write_text("about")

    data = load(tmp_path)

    assert data.class_names == ("ant", "bee")
    assert len(data.train) == 4


def test_folders_within_a_class_folder_count_as_the_class(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_photo(tmp_path / "bee" / "2024" / "may" / "0.png")

    assert load(tmp_path).train.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_class_folder_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    write_classes(tmp_path, names=("[ab]", "a"))

    data = load(tmp_path)

    assert data.class_names == ("[ab]", "a")
    assert data.train.labels.tolist() == [0, 0, 1, 1]


def test_validation_is_held_out_by_class(tmp_path: Path) -> None:
    write_classes(tmp_path, count=8)

    data = load(tmp_path, val_split=0.25)

    assert data.validation is not None
    assert np.bincount(data.validation.labels).tolist() == [2, 2]
    assert np.bincount(data.train.labels).tolist() == [6, 6]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_written_as_a_folder_are_loaded_as_they_were(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, channels), np.uint8)
    labels = np.array([0, 1, 1, 2, 0, 2])

    write_image_folder(tmp_path, images, labels, ("ant", "bee", "cat"))
    data = load(tmp_path)

    order = np.argsort(labels, kind="stable")
    assert data.class_names == ("ant", "bee", "cat")
    assert np.array_equal(data.train.images, images[order])
    assert np.array_equal(data.train.labels, labels[order])


def test_separators_in_class_names_do_not_make_folders(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4, 1), np.uint8)

    write_image_folder(tmp_path, images, np.array([0, 1, 2]), ("T-shirt/top", "../outside", "a\\b"))

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/*.png")) == [
        "T-shirt_top/00000.png",
        "_._outside/00001.png",
        "a_b/00002.png",
    ]


def test_classes_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'a/b' and 'a_b' would share the folder 'a_b'"):
        write_image_folder(tmp_path, np.zeros((1, 4, 4, 1), np.uint8), np.array([0]), ("a/b", "a_b"))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".", "..", ".hidden"])
def test_no_class_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out" / "images"

    write_image_folder(folder, np.zeros((1, 4, 4, 1), np.uint8), np.array([0]), (name, "other"))

    (written,) = tmp_path.glob("**/*.png")
    assert written.parent.parent == folder
    assert list(list_classes(folder)) == ["_" + name[1:]]


@given(
    ending=st.sampled_from(["png", "jpg", "bmp", "webp", "tif"]),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    in_file=st.sampled_from([1, 3]),
    in_model=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
)
def test_training_sees_each_file_exactly_as_the_runtime_does(
    tmp_path_factory: pytest.TempPathFactory,
    ending: str,
    height: int,
    width: int,
    in_file: int,
    in_model: int,
    size: tuple[int, int],
) -> None:
    path = write_photo(tmp_path_factory.getbasetemp() / f"photo.{ending}", height, width, in_file)
    spec = ImageSpec(*size, in_model)

    images, _, errors = load_images([str(path)], spec.shape[:2], spec.channels)

    assert errors == {}
    assert np.array_equal(images, pixels_of(path, spec)[np.newaxis])


@pytest.mark.parametrize("image_size", [None, (11, 9), (3, 4)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_loaded_folder_holds_what_the_runtime_reads(
    tmp_path: Path, ending: str, channels: int, image_size: tuple[int, int] | None
) -> None:
    for name in ("ant", "bee"):
        for i in range(3):
            write_photo(tmp_path / name / f"{i}.{ending}", 8, 7, channels, seed=i)

    data = load(tmp_path, image_size=image_size)

    expected = [pixels_of(path, data.image_spec) for path in sorted(tmp_path.glob(f"*/*.{ending}"))]
    assert data.image_spec.shape == (*(image_size or (8, 7)), channels)
    assert np.array_equal(data.train.images, expected)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_gray_files_among_color_ones_are_trained_on_as_the_runtime_reads_them(tmp_path: Path, fit: Any) -> None:
    write_classes(tmp_path, count=3)
    drawing = np.zeros((9, 4, 2), np.uint8)
    drawing[2:6, 2, 1] = 255
    Image.fromarray(drawing, "LA").save(tmp_path / "ant" / "0.png")
    write_photo(tmp_path / "bee" / "1.png", channels=3)

    data = load(tmp_path, image_size=(8, 8), fit=fit, background="#204060")

    assert data.image_spec.shape == (8, 8, 3)
    expected = [pixels_of(path, data.image_spec) for path in sorted(tmp_path.glob("*/*.png"))]
    assert np.array_equal(data.train.images, expected)


def test_the_background_of_deep_images_is_that_of_their_depth_range(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(2):
            values = np.full((6, 5), 4095, np.uint16)
            values[2:4, 1:4] = 1000 * i
            Image.fromarray(values).save(tmp_path / name / f"{i}.png")

    assert load(tmp_path, depth_range="0-4095").background == (255, 255, 255)
    assert load(tmp_path, depth_range="0-8190").background == (127, 127, 127)


def test_looking_at_large_transparent_images_takes_little_memory(tmp_path: Path) -> None:
    write_classes(tmp_path)
    drawing = Image.new("RGBA", (2500, 2500))
    drawing.paste((0, 0, 0, 255), (900, 900, 1600, 1600))
    drawing.save(tmp_path / "ant" / "0.png", compress_level=1)

    tracemalloc.start()
    try:
        background = load(tmp_path, image_size=(6, 5)).background
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert background == (255, 255, 255)
    assert most < 10 << 20  # and 25 MB are the image, which Pillow holds


def test_images_lying_on_their_side_are_trained_on_upright(tmp_path: Path) -> None:
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    for seed, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for suffix in (".png", ".tif"):
            to_image(pattern(20, 40, 1, seed)).save(tmp_path / name / f"a{suffix}", exif=lying)

    data = load(tmp_path)

    upright = [np.rot90(pattern(20, 40, 1, seed), -1) for seed in (0, 0, 1, 1)]
    assert np.array_equal(data.train.images, upright)


def test_what_was_left_out_is_noted(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", count=4)
    write_classes(tmp_path / "test", count=2)
    write_classes(tmp_path / "unlabeled", count=2)
    shutil.rmtree(tmp_path / "test" / "bee")
    (tmp_path / "train" / "bee" / "broken.png").write_bytes(b"no image")

    notes = load(tmp_path, skip_unreadable=True).notes

    assert notes == (
        f"{tmp_path}/unlabeled: left out, neither train, val nor test",
        f"Left out 1 of 9 images that can't be decoded, the first: {tmp_path}/train/bee/broken.png: "
        "not an image in a supported format, or damaged",
        "No test images for the class 'bee'",
    )


@pytest.mark.parametrize(
    ("names", "way_out"),
    [
        (("Train", "Test"), "Rename Test to test and Train to train"),
        (("training", "validation"), "Rename training to train"),
        (("TRAIN", "Val"), "Rename TRAIN to train and Val to val"),
        (("test", "val"), "there is no train beside them"),
        (("train", "Test"), "rename Test to test"),
        (("train", "Validation"), "rename Validation to validation"),
        (("train", "testing"), "rename testing to test"),
    ],
)
def test_splits_that_are_misnamed_get_the_right_hint(tmp_path: Path, names: tuple[str, str], way_out: str) -> None:
    for name in names:
        write_classes(tmp_path / name)

    with pytest.raises(DataError, match=way_out):
        load(tmp_path)


def test_test_images_beside_the_class_folders_are_not_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_classes(tmp_path / "test")

    with pytest.raises(DataError, match=r"/test: holds a folder ant, .* Move the folders of training images into"):
        load(tmp_path)


def test_a_class_may_be_named_like_a_split_and_is_pointed_out(tmp_path: Path) -> None:
    write_classes(tmp_path, names=("valid", "invalid"))

    data = load(tmp_path)

    assert data.class_names == ("invalid", "valid")
    assert data.notes == (f"{tmp_path}/valid: used as a class, though it is named like a split of the data",)


@pytest.mark.parametrize("image_size", [None, (6, 5), (3, 4)])
def test_every_image_keeps_its_path(tmp_path: Path, image_size: tuple[int, int] | None) -> None:
    write_classes(tmp_path / "train", count=6)
    write_classes(tmp_path / "test", count=3)
    (tmp_path / "train" / "ant" / "3.png").write_bytes(b"no image")
    (tmp_path / "test" / "ant" / "0.png").write_bytes(b"no image")

    data = load(tmp_path, image_size=image_size, skip_unreadable=True, val_split=0.4)

    assert data.validation is not None
    assert data.test is not None
    assert len({*data.train.paths, *data.validation.paths, *data.test.paths}) == 11 + 5
    for split in (data.train, data.validation, data.test):
        for path, image, label in zip(split.paths, split.images, split.labels, strict=True):
            assert Path(path).parent.name == data.class_names[label]
            assert (pixels_of(path, data.image_spec) == image).all()


def test_images_from_no_files_have_no_paths(tmp_path: Path) -> None:
    data = load_data(DataSource(dataset="digits", data_root=str(tmp_path), image_size=(4, 4), val_split=0.2))

    assert data.validation is not None
    assert data.train.paths == data.validation.paths == ()
