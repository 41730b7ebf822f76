"""A signal that comes while Python's own code for threads holds a lock ends the command, and not the lock's release."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rnn_runtime.interruption import SIGNALS
from tests.support.commands import heeding_ctrl_c

# Sends this process a signal as `Condition.__enter__` returns: the lock is held, and the `with` block not yet entered.
# A thread needs the same lock to go on: one that is being started, or one whose result is waited for.
PROGRAM = """
import signal, sys, threading, time

FILE, FUNCTION, SIGNAL = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))

def trace(frame, event, argument):
    if frame.f_code is not threading.Condition.__enter__.__code__:
        return None
    callers = list(callers_of(frame))
    names = [caller.f_code.co_name for caller in callers]
    if event == "return" and FUNCTION in names and any(c.f_code.co_filename.endswith(FILE) for c in callers):
        called = callers[names.index(FUNCTION)].f_locals["self"]
        if FUNCTION == "start" or not called.done():
            sys.settrace(None)
            signal.raise_signal(SIGNAL)
    return trace

def callers_of(frame):
    while (frame := frame.f_back) is not None:
        yield frame

sys.argv[0] = "rnn-infer"
from rnn_runtime.cli import main
from rnn_runtime.engine import cpu

def run_session(*arguments, run=cpu.run_session, **options):
    if threading.current_thread() is not threading.main_thread():
        time.sleep(0.2)  # so that its result is waited for
    return run(*arguments, **options)

cpu.run_session = run_session
sys.settrace(trace)
main()
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("file", "function"), [("images/pool.py", "start"), ("engine/cpu.py", "start"), ("engine/cpu.py", "result")]
)
def test_a_signal_while_a_lock_is_held_ends_the_command(
    tmp_path: Path, digits_model: Path, digits_images: Path, file: str, function: str, number: int
) -> None:
    images = sorted(digits_images.rglob("*.png"))
    (tmp_path / "images").mkdir()
    for i in range(600):
        shutil.copy(images[i % len(images)], tmp_path / "images" / f"{i:03}.png")
    # One batch, so that no images are read while the model runs.
    options = ("--provider", "cpu", "--threads", 2, "--batch-size", 600, "--output", "out.csv")
    arguments = ("--model", digits_model, *options, "images")

    with heeding_ctrl_c():
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, file, function, str(number), *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert result.returncode == 128 + number
    assert result.stderr.startswith(f"Error: {SIGNALS[number]}")
    assert len(result.stderr.splitlines()) == 1


def test_a_second_signal_ends_a_command_that_waits_for_a_lock() -> None:
    program = """
import sys, threading, time
from rnn_runtime.interruption import command_signals, raise_at_signals

def announce():
    while sys._current_frames()[threading.main_thread().ident].f_code is not threading.Condition.wait.__code__:
        time.sleep(0.01)
    print("waiting", flush=True)

with command_signals():
    raise_at_signals()
    threading.Thread(target=announce).start()
    waiting = threading.Condition()
    with waiting:
        waiting.wait(60)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"

        while process.poll() is None:  # two that come at once are one to the process
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        _, stderr = process.communicate()

    assert process.returncode == 128 + signal.SIGTERM
    assert stderr == "Error: terminated\n"
