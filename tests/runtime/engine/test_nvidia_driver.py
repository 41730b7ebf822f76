"""What NVIDIA's driver says of itself; a compiled stand-in answers for it."""

import _ctypes
import os
import shutil
from pathlib import Path

import pytest

from tests.support.commands import RunProcess

CODE = "from rnn_runtime.engine.cuda import find_driver; print(find_driver())"


def test_driver_tells_its_version_and_its_devices(run_process: RunProcess, stand_in_driver: Path) -> None:
    result = run_process("python", "-c", CODE, env={"LD_LIBRARY_PATH": str(stand_in_driver)})

    assert result.stdout == "Driver(cuda_version=(99, 0), devices=('GPU A', 'GPU B'), problem=None)\n"


def test_driver_that_does_not_start_says_why(run_process: RunProcess, stand_in_driver: Path) -> None:
    environment = {"LD_LIBRARY_PATH": str(stand_in_driver), "DRIVER_FAILS": "100"}

    result = run_process("python", "-c", CODE, env=environment)

    assert "problem='no CUDA-capable device is detected (CUDA error 100)'" in result.stdout


def test_library_that_only_has_the_drivers_name_tells_nothing(run_process: RunProcess, tmp_path: Path) -> None:
    shutil.copy(_ctypes.__file__, tmp_path / "libcuda.so.1")

    result = run_process("python", "-c", CODE, env={"LD_LIBRARY_PATH": str(tmp_path)})

    assert result.stdout == "Driver(cuda_version=None, devices=None, problem=None)\n"


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver")
def test_machine_without_a_driver_has_none(run_process: RunProcess) -> None:
    assert run_process("python", "-c", CODE).stdout == "None\n"
