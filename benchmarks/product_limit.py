"""The machine's limit for float32 products, in GFLOP/s, on all cores: the best of several libraries and sizes.

Run it as a process of its own: `python -m benchmarks.product_limit ROWS` prints one number. `OPENBLAS_CORETYPE` makes
NumPy's library use the code for another processor, so `measure` leaves it out.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from rnn_runtime.cores import usable_cores

HIDDEN = 128  # the article's hidden size
MFLOP_AN_IMAGE = 2.95  # its 28 rows and 2 layers: 2 x 28 x (28 x 128 + 3 x 128 x 128) = 2.95 million
LARGE = 1024
SECONDS = 0.15  # per library and size
SESSION_PRODUCTS = 16  # in a graph, so that a run isn't mostly the call from Python


def measure(rows: int) -> float:
    """GFLOP/s of the fastest way to multiply either `(rows, 128)` by `(128, 128)`, or 1024 by 1024."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    line = [sys.executable, "-m", "benchmarks.product_limit", str(rows)]
    result = subprocess.run(
        line, cwd=Path(__file__).parents[1], env=environment, check=True, capture_output=True, text=True
    )
    return float(result.stdout)


def _ways(rows: int, columns: int, threads: int) -> Iterator[tuple[Callable[[], object], float]]:
    """Functions, and the floating-point operations of a call."""
    generator = np.random.default_rng(0)
    left, right = (generator.random(shape, np.float32) for shape in ((rows, columns), (columns, columns)))
    out = np.empty_like(left)
    operations = 2.0 * rows * columns * columns
    yield lambda: np.matmul(left, right, out=out), operations
    tensors = torch.from_numpy(left), torch.from_numpy(right), torch.from_numpy(out)
    yield lambda: torch.mm(tensors[0], tensors[1], out=tensors[2]), operations
    whole = _session(right, threads)
    yield lambda: whole.run(["last"], {"left": left}), operations * SESSION_PRODUCTS
    # Each thread multiplies a part of the rows, as the product's own threads do.
    single, pool = _session(right, 1), ThreadPoolExecutor(threads)
    parts = np.array_split(left, threads)
    yield (
        lambda: list(pool.map(lambda part: single.run(["last"], {"left": part}), parts)),
        operations * SESSION_PRODUCTS,
    )


def _session(right: np.ndarray, threads: int) -> onnxruntime.InferenceSession:
    names = ["left", *(f"product_{i}" for i in range(1, SESSION_PRODUCTS)), "last"]
    nodes = [helper.make_node("MatMul", [before, "right"], [after]) for before, after in itertools.pairwise(names)]
    size = len(right)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name in ("left", "last")]
    graph = helper.make_graph(
        nodes, "products", values[:1], values[1:], [numpy_helper.from_array(right / size, "right")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _speed(run: Callable[[], object], operations: float) -> float:
    run()
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        run()
        calls += 1
    return calls * operations / elapsed / 1e9


def main() -> None:
    """Print the limit for a number of rows."""
    threads = usable_cores()
    torch.set_num_threads(threads)
    sizes = ((int(sys.argv[1]), HIDDEN), (LARGE, LARGE))
    with torch.inference_mode():
        print(max(_speed(*way) for size in sizes for way in _ways(*size, threads)))


if __name__ == "__main__":
    main()
