"""Python imports this module when it starts, if this folder is on PYTHONPATH: it lets a test hold the process.

PAUSE_AT="open:images/9.png" holds it at Python's audit event `open` when an argument ends so, once. Then a byte goes
to the first descriptor of PAUSE_PIPES, and the thread waits until the second one is closed. It touches nothing of the
program that is held: https://docs.python.org/3/library/audit_events.html names the places.
"""

import os
import sys

_EVENT, _, _END = os.environ.pop("PAUSE_AT").partition(":")
_SAY, _WAIT = map(int, os.environ.pop("PAUSE_PIPES").split())
_paused = False


def _pause(event: str, arguments: tuple[object, ...]) -> None:
    global _paused
    if event != _EVENT or _paused:
        return
    if any(isinstance(argument, str) and argument.endswith(_END) for argument in arguments):
        _paused = True
        os.write(_SAY, b".")
        os.read(_WAIT, 1)


sys.addaudithook(_pause)
