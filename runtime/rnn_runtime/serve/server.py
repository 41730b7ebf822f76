"""The HTTP server: it listens, and on SIGTERM it answers what is under way before it ends."""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from rnn_runtime.command.command import say
from rnn_runtime.errors import Argument, SettingsError

_BACKLOG = 256
_HEADER_SECONDS = 15
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


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
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        name = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        problem = f"can't listen on {host}, port {port}: {error.strerror or error}. Choose another "
        raise SettingsError(problem, Argument(name)) from None
    return listener


def serve(
    app: Starlette,
    listener: socket.socket,
    *,
    grace: float = 10.0,
    ready: Callable[[], None] = lambda: None,
    reload: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT: then refuse new connections, answer what is under way, and return.

    Args:
        app: The application.
        listener: As `listen` gives it. It is closed at the end.
        grace: Seconds for requests under way, after which their connections are closed. A second signal ends them at
            once.
        ready: Called once the server listens.
        reload: Called at each SIGHUP.
    """
    config = uvicorn.Config(
        app,
        backlog=_BACKLOG,
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace)),
        http=_Connection,
    )
    asyncio.run(_Server(config, app, ready, reload).serve(sockets=[listener]))


class _Connection(H11Protocol):
    """A client that has sent its request, and then says that nothing more will come, still gets its answer."""

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Whether the connection stays open for the answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return None
        cycle.keep_alive = False
        return True


class _Server(uvicorn.Server):
    """uvicorn, with two things that it leaves to a proxy, which a service on its own port doesn't have."""

    def __init__(
        self, config: uvicorn.Config, app: Starlette, ready: Callable[[], None], reload: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._app, self._ready, self._reload = app, ready, reload
        self._has_said_it = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as the wish to end: uvicorn would raise them again, and not exit with 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        yield

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # at the second signal
        self.should_exit = self._app.state.ending = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        await super().startup(sockets)
        self._closing_stalled = loop.create_task(self._close_stalled())
        self._ready()

    async def _close_stalled(self) -> None:
        """Close connections that send nothing, or headers without an end.

        uvicorn's own time limit is for the pause between two requests, and a body has one in `read_body`.
        """
        connections: set[Any] = self.server_state.connections
        stalled: set[tuple[Any, Any]] = set()
        while True:
            await asyncio.sleep(_HEADER_SECONDS)
            # A connection with the same answered request at two looks in a row has begun no other in between.
            idle = {(c, c.cycle) for c in connections if c.cycle is None or c.cycle.response_complete}
            for connection, _ in idle & stalled:
                connection.transport.close()
            stalled = idle

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an error of the event loop; of connections that can't be accepted, only the first.

        Without free file descriptors, asyncio tries again after a second, and reports each of hundreds of attempts.
        Those that are left at the end find the port closed.
        """
        error = context.get("exception")
        is_full = isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS
        if is_full and not self._has_said_it:
            self._has_said_it = True
            say("No more open files are allowed (ulimit -n): further connections wait")
        elif not is_full and not self.should_exit:
            loop.default_exception_handler(context)
