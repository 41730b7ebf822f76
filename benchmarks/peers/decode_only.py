"""The floor: reading and decoding a folder's files with our decoder on two threads, and nothing else."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from rnn_runtime.images.decode import decode_image, read_bytes
from rnn_runtime.model.spec import ImageSpec

SPEC = ImageSpec(28, 28, 1)


def decode(paths: list[str]) -> None:
    for path in paths:
        decode_image(read_bytes(path), SPEC)


folder = sys.argv[1]
paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
with ThreadPoolExecutor(2) as pool:
    list(pool.map(decode, [paths[start : start + 16] for start in range(0, len(paths), 16)]))
