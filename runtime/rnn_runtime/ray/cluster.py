"""The Ray cluster to run on: the one that RAY_ADDRESS names, or one of this machine alone."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from rnn_runtime.errors import MissingPackageError, ProcessLostError, ProviderError, SettingsError
from rnn_runtime.interruption import kept_handlers

# For a cluster that is started here. It listens on 127.0.0.1 only, since whoever reaches its ports can run code.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

_SECONDS = 10  # in which a cluster must take a connection


def import_ray() -> Any:
    """Import Ray.

    Raises:
        MissingPackageError: it isn't installed, or can't be imported.
    """
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingPackageError(f"Ray can't be imported ({error}). Install it with: pip install ray") from None


@contextmanager
def connect(ray: Any) -> Iterator[None]:
    """Connect to the cluster until the end of the block. A connection that is there already is used, and kept.

    Raises:
        ProcessLostError: the cluster that RAY_ADDRESS names doesn't answer, or one can't be started.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    for name, value in {} if address else _LOCAL.items():
        os.environ.setdefault(name, value)
    try:
        with kept_handlers():  # Ray's own would end the process at SIGTERM
            ray.init(
                address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address} doesn't answer" if address else "Ray can't be started"
        raise ProcessLostError(f"{where}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that something listens at an address. Ray itself would go on trying for a quarter of an hour."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():  # such as `auto`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ProcessLostError(f"the Ray cluster at {address} doesn't answer: {error}. Check RAY_ADDRESS") from None


@dataclass(frozen=True, slots=True)
class Layout:
    """How many actors there are, and what each has.

    Attributes:
        actors: Their number.
        provider: Of each.
        threads: CPU threads of each.
    """

    actors: int
    provider: Literal["cpu", "cuda"]
    threads: int


def lay_out(ray: Any, provider: str, actors: int | None, threads: int | None) -> Layout:
    """Spread actors over the cluster: one per GPU, or else one per machine, which uses all its cores.

    Raises:
        ProviderError: `provider` is `cuda`, and the cluster has no GPU.
        SettingsError: the cluster has fewer GPUs or CPUs than asked for.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if provider == "cuda" and not gpus:
        raise ProviderError('the Ray cluster has no GPU. Choose `provider="cpu"`')
    chosen: Literal["cpu", "cuda"] = "cuda" if provider == "cuda" or (provider == "auto" and gpus) else "cpu"
    actors = actors or (gpus if chosen == "cuda" else len(nodes))
    if chosen == "cuda" and actors > gpus:
        raise SettingsError(f"`actors={actors}`, and the Ray cluster has {gpus} GPUs. Each actor needs one")
    least = int(min(node["CPU"] for node in nodes))
    per_node = -(-actors // len(nodes))
    threads = threads or max(1, least // per_node)
    fit = sum(int(node["CPU"]) // threads for node in nodes)
    if actors > fit:
        raise SettingsError(
            f"{actors} actors with {threads} threads each: the CPUs of the Ray cluster are enough for {fit}. "
            "Choose fewer `actors` or `threads`"
        )
    return Layout(actors, chosen, threads)
