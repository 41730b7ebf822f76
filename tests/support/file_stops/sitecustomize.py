"""Imported by Python at its start: stops this process before each change to a folder, and says so over a socket."""

import os
import re
import socket
import sys
from typing import Any

_FOLDER = os.environ.pop("STOPS_FOLDER")
_CONNECTION = socket.socket(fileno=int(os.environ.pop("STOPS_SOCKET")))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _change(event: str, arguments: tuple[Any, ...]) -> str | None:
    """What an event of docs.python.org/3/library/audit_events.html is about to do to the folder, if anything."""
    match event, arguments:
        case "open", (str() | os.PathLike() as path, _, int(flags)) if flags & _WRITES:
            return _describe("open", path)
        case "os.rename", (_, target, *_):
            return _describe("move", target)
        case "os.remove" | "os.rmdir", (path, *_):
            return _describe("remove", path)
        case "os.mkdir", (path, *_):
            return _describe("mkdir", path)
    return None


def _describe(what: str, path: Any) -> str | None:
    path = os.path.abspath(os.fspath(path))
    if not isinstance(path, str) or not path.startswith(_FOLDER + os.sep):
        return None
    # .model.pt.1a2b3c4d.tmp is a temporary file, .model.onnx.abcd_123 a temporary folder
    return f"{what} {re.sub(r'(?<=[.])[0-9a-z_]{8}(?=[.]tmp|/|$)', '*', path.removeprefix(_FOLDER + os.sep))}"


def _stop(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        return
    change = _change(event, arguments)
    if change is None:
        return
    try:
        _CONNECTION.sendall(change.encode())
        _CONNECTION.recv(1)  # an answer, or nothing once nobody is there who would want it to stop
    except OSError:
        pass


sys.addaudithook(_stop)
