"""A signal that comes while Python's own code for threads holds a lock ends the command, and not the lock's release."""

import signal
import subprocess
import sys
import time


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
