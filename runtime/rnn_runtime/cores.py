"""How much of the machine this process may use: cores, threads and memory, as its container allows.

Containers limit processor time (`docker --cpus`), memory (`--memory`), and the number of processes and threads
(`--pids-limit`) by control groups: docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MOUNT = Path("sys/fs/cgroup")
_THREAD_BYTES = 256 << 20  # what a photo of 48 million pixels takes while it is decoded and resized
_MOST_TRIED = 64  # threads; where so many can be started, nothing is scarce

_most: int | None = None  # set by `limit_threads`


def usable_cores(root: Path = Path("/")) -> int:
    """The number of cores that this process may use, at least 1; no more than `limit_threads` says.

    A quota of processor time counts as so many cores, rounded up.

    Args:
        root: Where `proc` and `sys` are.
    """
    return allowed_threads(max(1, min([reachable_cores(), *_quotas(root)])))


def reachable_cores() -> int:
    """The number of cores that this process may run on, however little of their time it gets."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(root: Path = Path("/")) -> int:
    """How many threads decode images, unless their number is chosen: one per core, if the memory has room for them.

    Args:
        root: Where `proc` and `sys` are.
    """
    return max(1, min(usable_cores(root), usable_memory(root) // _THREAD_BYTES))


def usable_memory(root: Path = Path("/")) -> int:
    """The bytes of memory that this process may use.

    Args:
        root: Where `proc` and `sys` are.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _groups(root, controller):
            with suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((folder / name).read_text()))
    return min(limits)


def limit_threads(most: int) -> None:
    """Have `usable_cores` and `allowed_threads` be no more than this, in the whole process."""
    global _most
    _most = most


def threads_are_scarce() -> bool:
    """Whether `limit_threads` was called. Then no thread is left for a progress bar."""
    return _most is not None


def allowed_threads(wanted: int) -> int:
    """As many of the threads that are wanted as `limit_threads` allows."""
    return min(wanted, _most or wanted)


def startable_threads(most: int) -> int:
    """How many threads this process can start now, tried up to `most`, or 64. A process counts as one, too."""
    go_on, started = threading.Event(), []
    try:
        with suppress(RuntimeError):
            for _ in range(min(most, _MOST_TRIED)):
                thread = threading.Thread(target=go_on.wait)
                thread.start()
                started.append(thread)
    finally:
        go_on.set()
        for thread in started:
            thread.join()
    return most if len(started) == _MOST_TRIED else len(started)


def _quotas(root: Path) -> Iterator[int]:
    """Each limit on processor time that holds for this process, in cores."""
    for folder in _groups(root, ""):  # version 2
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield -(-int(quota) // int(period))
    for folder in _groups(root, "cpu"):  # version 1
        with suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield -(-int(quota) // int(period))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, up to the one at the mount.

    In a container, the path may be that of the host, where the container's own group is what is mounted.
    """
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller not in controllers.split(","):
                continue
            for mount in {controllers, controller, controller or "unified"}:
                top = root / _MOUNT / mount
                group = top / path.lstrip("/")
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))
