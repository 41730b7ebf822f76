"""What several test modules need: the commands, one trained model, real data."""

import ctypes
import fcntl
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rnn_runtime.engine import import_onnxruntime
from tests.support import commands
from tests.support.commands import Run, RunProcess, run_in_process
from tests.support.driver import build_driver
from tests.support.folders import MakeOnce

# Several workers with as many threads each as there are cores would wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may take long on a machine that is busy, but not forever. `--hypothesis-profile=long` tries many more.
settings.register_profile("quick", deadline=timedelta(minutes=1), suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("quick"), max_examples=20_000)
settings.load_profile("quick")

FASHION_MNIST = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in this process, and in `tmp_path`: `run("rnn-infer", "a.png", input="...")`."""
    return partial(run_in_process, folder=tmp_path)


@pytest.fixture
def run_process(tmp_path: Path) -> RunProcess:
    """Run a command as a process of its own; for what a process alone has: signals, its streams, its imports."""
    return partial(commands.run_process, folder=tmp_path)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """Make a folder once for all workers of a test run: `make_once("name", fill)`, where `fill` puts files into it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).exists():
                unfinished = tmp_path_factory.mktemp(name)
                fill(unfinished)
                unfinished.rename(shared / name)
        return shared / name

    return make


@pytest.fixture(scope="session")
def digits_checkpoint(make_once: MakeOnce) -> Path:
    """A vanilla RNN trained on digits, good enough to tell them apart."""

    def fill(folder: Path) -> None:
        from rnn_train import DataSource, TrainSettings, train

        settings = TrainSettings(epochs=15, learning_rate=0.005)
        train(DataSource(dataset="digits"), settings, folder / "model.pt", device="cpu", plots=False)

    return make_once("digits", fill) / "model.pt"


@pytest.fixture(scope="session")
def digits_model(make_once: MakeOnce, digits_checkpoint: Path) -> Path:
    """`digits_checkpoint`, exported."""

    def fill(folder: Path) -> None:
        from rnn_export import export_onnx

        export_onnx(digits_checkpoint, folder / "model.onnx")

    return make_once("digits_model", fill) / "model.onnx"


@pytest.fixture(scope="session")
def digits_images(make_once: MakeOnce) -> Path:
    """The 360 test digits as PNG files, in a folder a class."""

    def fill(folder: Path) -> None:
        from rnn_train.data import DataSource, load_data, write_image_folder

        data = load_data(DataSource(dataset="digits"))
        assert data.test is not None
        write_image_folder(folder, data.test.images, data.test.labels, data.class_names)

    return make_once("digits_images", fill)


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of Fashion-MNIST's four IDX files, as Debian's dataset-fashion-mnist installs it."""
    if not FASHION_MNIST.is_dir():
        pytest.skip("needs Fashion-MNIST: apt-get install dataset-fashion-mnist, or set FASHION_MNIST to its folder")
    return FASHION_MNIST


@pytest.fixture(scope="session")
def stand_in_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LD_LIBRARY_PATH with a libcuda.so.1 that answers for a driver of CUDA 99.0 and two GPUs.

    With DRIVER_CUDA=11080 in the environment it is one of CUDA 11.8, with DRIVER_FAILS=100 it can't start.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler: install gcc")
    return build_driver(compiler, tmp_path_factory.mktemp("driver"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is an NVIDIA driver and onnxruntime has CUDA; elsewhere they say why not."""
    missing = None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        missing = "needs an NVIDIA GPU"
    else:
        if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
            missing = "needs the extra cuda: make clean && make test RUNTIME=cuda"
    for item in items:
        if missing and "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=missing))
