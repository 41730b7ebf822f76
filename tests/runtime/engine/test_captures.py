"""What must wait while a CUDA graph is captured."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from rnn_runtime.engine.captures import CaptureLock, graph_thread


def test_runs_go_on_at_once() -> None:
    lock = CaptureLock()
    both = threading.Barrier(2, timeout=30)

    def run() -> None:
        with lock.shared():
            both.wait()  # passes only if both are inside

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run), pool.submit(run)]:
            done.result()


def test_a_capture_is_alone_among_runs_and_other_captures() -> None:
    lock = CaptureLock()
    inside: list[str] = []
    found: list[list[str]] = []
    guard = threading.Lock()

    def work(kind: str) -> None:
        with lock.alone() if kind == "capture" else lock.shared():
            with guard:
                inside.append(kind)
                found.append(list(inside))
            threading.Event().wait(0.001)
            with guard:
                inside.remove(kind)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, ["run", "run", "run", "capture"] * 50))

    assert len(found) == 200
    assert {tuple(together) for together in found if "capture" in together} == {("capture",)}


def test_a_capture_does_not_wait_for_runs_that_come_later() -> None:
    lock = CaptureLock()
    order: list[str] = []
    waiting = threading.Event()

    def capture() -> None:
        waiting.set()
        with lock.alone():
            order.append("capture")

    def run() -> None:
        with lock.shared():
            order.append("run")

    with ThreadPoolExecutor(2) as pool:
        with lock.shared():
            first = pool.submit(capture)
            waiting.wait(30)
            while not lock.is_wanted:
                threading.Event().wait(0.001)
            second = pool.submit(run)
        first.result(30)
        second.result(30)

    assert order == ["capture", "run"]


def test_an_error_in_a_run_or_capture_lets_others_go_on() -> None:
    lock = CaptureLock()
    for enter in (lock.shared, lock.alone):
        try:
            with enter():
                raise OSError("no memory")
        except OSError:
            pass

    with lock.alone():
        pass
    with lock.shared():
        pass


def test_each_device_has_one_thread_for_graphs() -> None:
    threads = {
        device: {graph_thread(device).submit(threading.get_ident).result() for _ in range(20)} for device in (0, 1)
    }

    assert all(len(idents) == 1 for idents in threads.values())
    assert not threads[0] & threads[1]


def test_a_process_with_a_graph_thread_ends() -> None:
    code = "from rnn_runtime.engine.captures import graph_thread; graph_thread(0).submit(print, 'ran')"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (result.returncode, result.stdout) == (0, "ran\n")
