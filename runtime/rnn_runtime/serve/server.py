"""The HTTP server: it listens, and on SIGTERM it answers what is under way before it ends."""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from rnn_runtime.errors import SettingsError
from rnn_runtime.serve.connections import BACKLOG, Connection, most_connections


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: uvicorn would raise a signal again at its end, and the process would not exit with 0."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    Raises:
        SettingsError: it is taken already, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With TCP named, asyncio sends the parts of an answer at once. Otherwise (as for sockets of `socket.create_server`)
    # the second waits 40 ms for the client's acknowledgement of the first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        what = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        reason = error.strerror or error
        raise SettingsError(f"can't listen on {host}, port {port}: {reason}. Choose another `{what}`") from None
    return listener


def serve(
    app: Starlette, listener: socket.socket, *, grace: float = 10.0, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or SIGINT: then refuse new connections, answer what is under way, and return.

    Args:
        app: The application.
        listener: As `listen` gives it. It is closed at the end.
        grace: Seconds for requests under way, after which their connections are closed. A second signal ends them at
            once.
        ready: Called once the server listens.
    """
    Connection.most = most_connections()
    config = uvicorn.Config(
        app,
        http=Connection,
        backlog=BACKLOG,
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    asyncio.run(_serve(_Server(config), listener, ready))


async def _serve(server: uvicorn.Server, listener: socket.socket, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit  # at the second signal
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await task
