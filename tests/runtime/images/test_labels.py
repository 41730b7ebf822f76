"""Tables of image files and their labels: each row is used, or named in an error."""

import unicodedata
from pathlib import Path

import pytest

from rnn_runtime.errors import InputError
from rnn_runtime.images.labels import read_labels


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `photos/1.jpg`, `photos/2.jpg` and `photos/a,b/3.jpg`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "a,b").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "a,b/3.jpg"):
        (tmp_path / "photos" / name).touch()
    return tmp_path


def labels_of(content: str | bytes) -> dict[str, str]:
    Path("labels.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return {row.path: row.label for row in read_labels("labels.csv", ["photos"])}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "content",
    [
        "path,label\n1.jpg,cat\n2.jpg,dog\n",
        "1.jpg,cat\n2.jpg,dog",
        "1.jpg;cat\r\n2.jpg;dog\r\n",
        "Filename\tx\tClass\n1.jpg\t5\tcat\n\n2.jpg\t6\tdog\n",
        "\ufefflabel, path\ncat, 1.jpg\ndog, 2.jpg \n",
        'image,category\n"1.jpg","cat"\n"2.jpg","dog"\n',
    ],
    ids=["names first", "without names", "semicolons", "tabs", "mark, spaces, label first", "quotes"],
)
def test_tables_are_read_as_programs_write_them(content: str) -> None:
    assert labels_of(content) == {"photos/1.jpg": "cat", "photos/2.jpg": "dog"}


def test_paths_may_be_absolute_nested_and_in_another_form_of_unicode(folder: Path) -> None:
    (folder / "photos" / unicodedata.normalize("NFD", "Käfer.jpg")).touch()

    found = labels_of(
        f'{folder}/photos/1.jpg,cat\n"a,b/3.jpg",dog\nKäfer.jpg,{unicodedata.normalize("NFD", "Käfer")}\n'
    )

    assert list(found.values()) == ["cat", "dog", "Käfer"]
    assert all(Path(path).exists() for path in found)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("path,label\n1.jpg,cat\n3.jpg,dog\n", "line 3: there is no file '3.jpg' in photos"),
        ("1.jpg,cat\n\n,dog\n", "line 3: no path"),
        ("1.jpg,cat\n2.jpg, \n", "line 2: no label"),
        ("1.jpg,cat\n2.jpg,cat,dog\n", "line 2: 3 values instead of 2"),
        ("1.jpg,cat\n2.jpg\n", "line 2: 1 value instead of 2"),
        ("1.jpg,cat\n2.jpg,dog\n./1.jpg,dog\n", "line 3: './1.jpg' is in line 1 already"),
        ("id,breed\n1.jpg,cat\n", "line 1: there is no file 'id' in photos. If this line names the columns, call them"),
        ("a,b,c\n1.jpg,cat,5\n", "line 1: 3 columns, not named path and label"),
        ("1.jpg\n", "line 1: 1 column, not named path and label"),
        ("path,label\n", "no rows"),
        ("", "no rows"),
        ('1.jpg,"cat\n', "line 1: unexpected end of data"),
        ("1.jpg,cat\n".encode("utf-16"), "not text in UTF-8"),
        (b"1.jpg,K\xe4fer\n", "not text in UTF-8"),
        ("1.jpg,cat\n2\0.jpg,cat\n", "line 2: there is no file '2\\x00.jpg'"),
    ],
)
def test_a_row_that_can_not_be_used_is_named(content: str | bytes, problem: str) -> None:
    with pytest.raises(InputError) as error:
        labels_of(content)

    assert str(error.value).startswith(f"labels.csv: {problem}")


def test_a_missing_table_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: No such file or directory\. It must be a CSV with the columns"):
        read_labels(folder / "gone.csv", ["photos"])
