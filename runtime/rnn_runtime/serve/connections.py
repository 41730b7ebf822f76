"""Connections to the HTTP server: their number is bounded, and each must send its headers in time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

# Connections that the system accepts in one go, before the number of those that are open is looked at.
BACKLOG = 256
_SECONDS = 30  # for the headers of a request: else a client that stalls keeps its connection for ever
_RESERVE = 64  # file descriptors for what else the process opens
_MOST_FILES = 1 << 16


def most_connections() -> int:
    """How many connections the process's limit on open files leaves room for. The limit is raised as far as it may be.

    Without a free descriptor, asyncio would report each connection that it can't accept, thousands per second.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - _RESERVE - 2 * BACKLOG, BACKLOG)


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP, with two limits. uvicorn closes idle connections itself, but only between two requests."""

    most = _MOST_FILES
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or drop it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._deadline = self.loop.call_later(_SECONDS, self._close)

    def data_received(self, data: bytes) -> None:
        """Pass data on. Headers that have begun have a deadline, a body has its own (`read_body`)."""
        super().data_received(data)
        if self._is_answering():
            self._drop_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_SECONDS, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._drop_deadline()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        if not self._is_answering():
            self.transport.close()
