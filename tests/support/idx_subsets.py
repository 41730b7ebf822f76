"""IDX files made from a part of others: a data set's first images."""

from pathlib import Path

from rnn_train.data.idx import read_idx
from tests.support.idx_files import idx_bytes


def copy_first(source: Path, target: Path, train: int, test: int) -> Path:
    """Write the first `train` and `test` images and labels of the four files in `source` to `target`, plain."""
    target.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{prefix}-{kind}-ubyte"
            values = read_idx(source / f"{name}.gz")[:count]
            (target / name).write_bytes(idx_bytes(values))
    return target
