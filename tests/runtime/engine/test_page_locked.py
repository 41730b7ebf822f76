"""Page-locked memory from a stand-in for the NVIDIA driver, and ordinary memory without one."""

import sys
from pathlib import Path

import pytest

from tests.support.commands import RunProcess

CODE = """
import ctypes, gc
from rnn_runtime.engine.page_locked import page_locked

driver = ctypes.CDLL("libcuda.so.1")
array = page_locked((3, 4, 5, 1))
array[:] = 7
part = array[:2]
print(array.shape, array.dtype, array.sum(), driver.stand_in_locked())
del array
gc.collect()
print(part.sum(), driver.stand_in_locked())
del part
gc.collect()
print(driver.stand_in_locked())
"""


@pytest.mark.parametrize(("locks", "count"), [("1", 1), ("0", 0)])
def test_memory_is_locked_where_the_driver_does_and_freed_with_its_last_array(
    run_process: RunProcess, stand_in_driver: Path, locks: str, count: int
) -> None:
    result = run_process("python", "-c", CODE, env={"LD_LIBRARY_PATH": str(stand_in_driver), "DRIVER_LOCKS": locks})

    assert result.stderr == ""
    assert result.stdout == f"(3, 4, 5, 1) uint8 420 {count}\n280 {count}\n0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_LIBRARY_PATH")
def test_without_a_driver_memory_is_ordinary(run_process: RunProcess) -> None:
    code = "from rnn_runtime.engine.page_locked import page_locked; print(page_locked((2, 3)).shape)"

    result = run_process("python", "-c", code)

    assert (result.stdout, result.stderr) == ("(2, 3)\n", "")
