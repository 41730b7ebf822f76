"""Small data sets on disk in the form of MNIST's four files."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    """An IDX file's content, written from the format's description and not by this project's code."""
    header = b"\0\0\x08" + bytes([values.ndim])
    return header + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_idx_folder(
    folder: Path, *, train: int = 40, test: int = 20, classes: int = 4, side: int = 6, seed: int = 0, ending: str = ""
) -> Path:
    """Write images of noise on a brightness that tells the class, `ending` being "" or ".gz"; gives `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % classes).astype(np.uint8)
        noise = generator.integers(0, 256 // classes, (count, side, side))
        images = (labels[:, None, None] * (256 // classes) + noise).astype(np.uint8)
        for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            data = idx_bytes(values)
            (folder / f"{name}{ending}").write_bytes(gzip.compress(data, 1) if ending else data)
    return folder
