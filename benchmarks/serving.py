"""`rnn-serve` under load, with and without batching, beside a service as it is usually written."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Row, compare, race_once
from benchmarks.models import make_peers
from rnn_runtime.model.spec import ImageSpec

CONNECTIONS = (1, 16, 64)
_SECONDS = 2.0  # of load per round
_BOUNDARY = "boundary"


def run() -> Iterator[Row]:
    """All comparisons of this module."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "dynamo.onnx").write_bytes(make_peers(folder, "rnn", ImageSpec(28, 28, 1)).dynamo)
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(file, "PNG")
        image = file.getvalue()
        form = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
            + image
            + f"\r\n--{_BOUNDARY}--\r\n".encode()
        )
        program = str(Path(sys.executable).with_name("rnn-serve"))
        serve = [program, "--provider", "cpu", "--model", str(folder / "model.onnx"), "--quiet", "--port"]
        fastapi = [sys.executable, "-m", "uvicorn", "--no-access-log", "benchmarks.peers.fastapi_service:app", "--port"]
        services = {
            "ours": (serve, [], image, "application/octet-stream"),
            "ours, one image per batch": (serve, ["--batch-size", "1"], image, "application/octet-stream"),
            "FastAPI + Pillow + onnxruntime": (fastapi, [], form, f"multipart/form-data; boundary={_BOUNDARY}"),
        }
        ask = {
            name: _start(stack, folder / f"request{i}", [*command], options, body, kind, folder / "dynamo.onnx")
            for i, (name, (command, options, body, kind)) in enumerate(services.items())
        }
        for connections in CONNECTIONS:
            rounds = race_once({name: _bind(function, connections) for name, function in ask.items()})
            what = f"rnn-serve, one PNG of 28 x 28 per request, {connections} connections"
            for peer in list(services)[1:]:
                yield compare(what, "requests/s", rounds, peer)


def _bind(function: Callable[[int], float], connections: int) -> Callable[[], float]:
    return lambda: function(connections)


def _start(
    stack: contextlib.ExitStack,
    request: Path,
    command: list[str],
    options: list[str],
    body: bytes,
    kind: str,
    model: Path,
) -> Callable[[int], float]:
    """Start a service; the function puts it under load over so many connections."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = os.environ | {"MODEL": str(model)}
    service = subprocess.Popen([*command, port, *options], env=environment, stderr=subprocess.DEVNULL)
    stack.callback(service.wait)
    stack.callback(service.kill)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
            break
        assert service.poll() is None, command
        time.sleep(0.1)
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    request.write_bytes(head.encode() + body)

    def load(connections: int) -> float:
        words = [sys.executable, "-m", "benchmarks.load", "127.0.0.1", port, request, connections, _SECONDS]
        return float(subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout)

    return load
