"""From the paths that a user names to image files."""

import contextlib
import glob
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_runtime.errors import InputError
from rnn_runtime.images.find import find_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_named_files_are_taken_whatever_their_ending(tmp_path: Path) -> None:
    touch(tmp_path, "b.data")

    assert list(find_images(["missing.png", "b.data"])) == ["b.data", "missing.png"]


def test_folder_gives_its_images_but_no_hidden_or_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.PNG", "in/a.jpeg", "in/.c.png", "in/notes.txt", "in/deeper/d.png")

    assert list(find_images(["in"])) == ["in/a.jpeg", "in/b.PNG"]


def test_recursive_goes_into_folders_and_leaves_out_hidden_ones(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/x/b.png", "in/x/y/c.png", "in/.hidden/d.png")

    assert list(find_images(["in"], recursive=True)) == ["in/a.png", "in/x/b.png", "in/x/y/c.png"]


def test_pattern_gives_matches_and_images_of_matching_folders(tmp_path: Path) -> None:
    touch(tmp_path, "x1/a.png", "x1/a.txt", "x2/b.png", "y/c.png")

    assert list(find_images(["x*"])) == ["x1/a.png", "x2/b.png"]
    assert list(find_images(["**/*.png"])) == ["x1/a.png", "x2/b.png", "y/c.png"]


def test_file_named_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png", "a1.png")

    assert list(find_images(["a[1].png"])) == ["a[1].png"]


def test_what_is_named_twice_comes_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/b.png")

    assert list(find_images(["in/b.png", "in", "in/*.png", "in"])) == ["in/a.png", "in/b.png"]


def test_link_to_a_folder_is_not_followed_so_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")

    assert list(find_images(["in"], recursive=True)) == ["in/a.png"]


def test_a_link_to_a_folder_is_searched_where_a_class_would_be_and_nowhere_else(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "other/b.png", "in/deep/c.png")
    for link in ("in/link.png", "in/deep/link"):
        (tmp_path / link).symlink_to(tmp_path / "other")
    for name in ("in/whole", "in/above", "in/twice"):
        (tmp_path / name).symlink_to({"whole": "../in", "above": "..", "twice": "deep"}[name[3:]])

    assert list(find_images(["in"])) == ["in/a.png"]
    assert list(find_images(["in"], recursive=True)) == ["in/a.png", "in/deep/c.png", "in/link.png/b.png"]


def test_folder_named_like_an_image_is_searched_if_recursive(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png/b.png", "in/c.png")

    assert list(find_images(["in"])) == ["in/c.png"]
    assert list(find_images(["in"], recursive=True)) == ["in/a.png/b.png", "in/c.png"]


def test_link_to_itself_is_left_to_reading(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.png")
    (tmp_path / "in" / "a.png").symlink_to("a.png")

    assert list(find_images(["in"])) == ["in/a.png", "in/b.png"]


def test_patterns_end_where_links_lead_back(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/x/b.png")
    for name in ("in/one", "in/two", "in/x/three"):
        (tmp_path / name).symlink_to(tmp_path / "in")

    assert list(find_images(["**/*.png"])) == ["in/a.png", "in/x/b.png"]
    assert list(find_images(["in/**"])) == ["in/a.png", "in/x/b.png"]


def test_folders_may_be_as_deep_as_paths_may_be_long(tmp_path: Path) -> None:
    deep = "in" + "/d" * 1100  # more than Python's limit of recursion
    subprocess.run(["mkdir", "-p", deep], cwd=tmp_path, check=True)
    try:
        (tmp_path / deep / "a.png").touch()

        assert list(find_images(["in"], recursive=True)) == [f"{deep}/a.png"]
        assert list(find_images(["in/**/*.png"])) == [f"{deep}/a.png"]
    finally:
        subprocess.run(["rm", "-r", "in"], cwd=tmp_path, check=True)


def test_odd_names_are_found_as_they_are(tmp_path: Path) -> None:
    names = ["in/a b.png", "in/a\nb.png", "in/ü.png", os.fsdecode(b"in/\xff.png")]
    touch(tmp_path, *names)

    assert list(find_images(["in"])) == sorted(names)


@pytest.mark.parametrize(
    ("paths", "recursive", "problem"),
    [
        (["empty"], True, "empty: no image files in this folder$"),
        (["outer"], False, "outer: no image files in this folder. Add `recursive=True`"),
        (["*.gif"], False, r"\*\.gif: no file matches this pattern"),
    ],
)
def test_what_matches_nothing_is_an_error(tmp_path: Path, paths: list[str], recursive: bool, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "outer/inner/a.png")

    with pytest.raises(InputError, match=problem):
        list(find_images(paths, recursive=recursive))


names = st.text(st.sampled_from("ab.-_ Z0é"), min_size=1, max_size=4).filter(lambda name: name.strip(".") != "")
trees = st.lists(st.lists(names, min_size=1, max_size=4), min_size=1, max_size=12)


@settings(max_examples=settings().max_examples // 2)  # each makes folders
@given(trees)
def test_any_tree_comes_sorted_and_complete_with_each_file_once(tree: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for parts in tree:
            path = root.joinpath(*parts[:-1], parts[-1] + ".png")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue  # a drawn name is a file in one place and a folder in another
        expected = sorted(
            str(path)
            for path in root.rglob("*.png")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
        )
        if not expected:
            return

        assert list(find_images([folder], recursive=True)) == expected


patterns = ["**/*.png", "**", "**/a/*", "a/**/*.png", "*/**/b*.png", "**/a/**/*.png", "a*/**", "*.png", "./**/*.png"]


@settings(max_examples=settings().max_examples // 2)
@given(trees, st.sampled_from(patterns))
def test_patterns_give_what_glob_does_where_there_are_no_links(tree: list[list[str]], pattern: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for parts in tree:
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                touch(Path(), "/".join([*parts[:-1], parts[-1] + ".png"]))
        matches = glob.glob(pattern, recursive=True)
        files = {path for path in matches if os.path.isfile(path)}
        expected = files | {path for match in matches if os.path.isdir(match) for path in find_images_in(match)}

        try:
            found = list(find_images([pattern]))
        except InputError:
            found = []

        assert found == sorted(expected)


def find_images_in(folder: str) -> list[str]:
    try:
        return list(find_images([folder]))
    except InputError:
        return []


def test_folder_is_read_while_its_images_are_taken(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/1.png", "in/b/2.png")

    found = find_images(["in"], recursive=True)
    first = next(found)
    touch(tmp_path, "in/b/3.png")

    assert [first, *found] == ["in/a/1.png", "in/b/2.png", "in/b/3.png"]


def test_a_single_text_is_no_list_of_paths() -> None:
    with pytest.raises(InputError, match="`paths` is a single text"):
        list(find_images("images"))
