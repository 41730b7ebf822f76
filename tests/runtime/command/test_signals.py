"""Ctrl-C and SIGTERM in a command: one line, the signal's exit code, and what is under way is finished first."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rnn_runtime.interruption import SIGNALS, signals_noted
from tests.support.commands import heeding_ctrl_c

# Sends itself a signal in different places; what is printed tells how far it came.
PROGRAM = """
import os, signal, sys, threading, time
import click
from rnn_runtime.command.command import Command
from rnn_runtime.interruption import result_of, signals_noted, stop_if_signaled, wait_for

def send():
    os.kill(os.getpid(), {number})
    sum(range(10**6))

@click.command(cls=Command, imports=['slow'])
def main():
{body}

main()
"""
BODIES = {
    "work": ("send()", ""),
    "import": ("pass", ""),
    "noted": (
        "with signals_noted():\n"
        "        for i in range(3):\n"
        "            stop_if_signaled()\n"
        "            if i == 1: send()\n"
        "            print(i, flush=True)",
        "0\n1\n",
    ),
    "noted until the end": ("with signals_noted():\n        send()\n        print('done', flush=True)", "done\n"),
    "noted in a wait": ("with signals_noted():\n        send()\n        wait_for(lambda: time.sleep(60))", ""),
    "noted twice": (
        "with signals_noted():\n        send()\n        time.sleep(0.3)\n        send()\n        print('on')",
        "",
    ),
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", BODIES)
def test_a_signal_ends_a_command_in_a_line(tmp_path: Path, place: str, number: int) -> None:
    body, printed = BODIES[place]
    (tmp_path / "program.py").write_text(PROGRAM.format(number=int(number), body=f"    {body}"))
    # While a class is made, as in any import, Python turns an exception into another one.
    (tmp_path / "slow.py").write_text(
        "import __main__\n"
        "class Field:\n"
        "    def __set_name__(self, owner, name): __main__.send()\n"
        "class Imported: field = Field()\n"
        if place == "import"
        else ""
    )

    with heeding_ctrl_c():
        result = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    assert (result.returncode, result.stdout) == (128 + number, printed)
    assert result.stderr == f"Error: {SIGNALS[number]}\n"


def test_a_command_that_has_ended_is_not_interrupted(tmp_path: Path) -> None:
    (tmp_path / "slow.py").touch()
    program = PROGRAM.format(number=int(signal.SIGTERM), body="    __import__('atexit').register(send)")
    (tmp_path / "program.py").write_text(program)

    result = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (0, "")


def test_handlers_are_afterwards_what_they_were() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    with signals_noted(), signals_noted():
        within = [signal.getsignal(number) for number in SIGNALS]

    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert before != within


def test_a_signal_that_no_loop_saw_is_raised_at_the_end_of_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), signals_noted():
        signal.raise_signal(signal.SIGTERM)
