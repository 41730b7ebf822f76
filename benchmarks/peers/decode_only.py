"""The floor: reading and decoding a folder's files with our decoder on two threads, and nothing else."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

cv2.setNumThreads(1)


def decode(paths):
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_GRAYSCALE)


folder = sys.argv[1]
paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
with ThreadPoolExecutor(2) as pool:
    list(pool.map(decode, [paths[start : start + 16] for start in range(0, len(paths), 16)]))
