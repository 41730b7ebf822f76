"""Object storage: a real S3 API on the loopback interface, behind a proxy that fails and stalls where it is told to."""

import http.client
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from rnn_runtime.files import remote


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to a server, after `interfere` has seen them."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.port = port
        self.interfere: Callable[[Request], bool] = lambda _: False

    def handle_error(self, *_: Any) -> None:
        """Nothing: a client that no longer waits is no error here."""


class Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        sent = self._read_body()
        if self.server.interfere(self):
            return
        there = http.client.HTTPConnection("127.0.0.1", self.server.port)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("transfer-encoding", "content-length")
        }
        there.request(self.command, self.path, sent or None, headers | {"Content-Length": str(len(sent))})
        answer = there.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(body)
        there.close()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def started() -> Iterator[Proxy]:
    """An empty S3. The environment names the proxy and credentials until the end of the block."""
    variables = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch, Proxy(port) as proxy:
        for name, value in variables.items():
            patch.setenv(name, value)
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
        yield proxy
        proxy.shutdown()
        thread.join()
    server.stop()


def reset(storage: Proxy) -> None:
    """Connect anew, to a storage that does nothing unusual."""
    remote._open.cache_clear()
    storage.interfere = lambda _: False


def put(bucket: str, name: str, content: bytes) -> None:
    """Put a file into a bucket, which is made if it is missing."""
    client = _client()
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key=name, Body=content)


def contents(bucket: str) -> dict[str, bytes]:
    """All files in a bucket."""
    client = _client()
    found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {file["Key"]: client.get_object(Bucket=bucket, Key=file["Key"])["Body"].read() for file in found}


def empty(bucket: str) -> None:
    """Delete all files in a bucket."""
    for name in contents(bucket):
        _client().delete_object(Bucket=bucket, Key=name)


def _client() -> Any:
    return _connect(os.environ["AWS_ENDPOINT_URL"])


@cache  # it takes half a second
def _connect(address: str) -> Any:
    return boto3.client("s3", endpoint_url=address)


def fail(handler: Request, status: int = 503) -> bool:
    """Answer a request with an error."""
    handler.send_response(status)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True
