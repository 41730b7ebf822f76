"""Small folders of images, a folder a class."""

from pathlib import Path
from zlib import crc32

from tests.support.encoded_images import pattern, to_image


def write_photo(path: Path, height: int = 6, width: int = 5, channels: int = 1, seed: int = 0) -> Path:
    """An image of noise, in the format that the ending names; gives `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(pattern(height, width, channels, seed)).save(path)
    return path


def write_classes(folder: Path, count: int = 2, names: tuple[str, ...] = ("ant", "bee"), channels: int = 1) -> Path:
    """Write `count` images of noise for each class, no two of them the same; gives `folder`."""
    for label, name in enumerate(names):
        for i in range(count):
            write_photo(folder / name / f"{i}.png", channels=channels, seed=crc32(f"{folder.name}{label}/{i}".encode()))
    return folder
