"""The way of three commands through the modules of the product: `make house`.

For each command: how many modules it enters and how often it goes from one to another, which and how many pools of
threads or processes it makes, and how often it opens its image. And of the product: its modules, and their lines.
"""

import concurrent.futures
import contextlib
import json
import multiprocessing.pool
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.support.driver import build_driver

ROOT = Path(__file__).parents[1]
PRODUCT = tuple(str(ROOT / folder) + os.sep for folder in ("runtime", "train", "export"))
STAND_IN = ROOT / "tests" / "support" / "stand_in_cuda"


class Way:
    """Follows calls into modules of the product, in all threads, without those of an import."""

    def __init__(self, image: Path) -> None:
        self.modules: list[str] = []
        self.switches = self.reads = 0
        self.pools: list[str] = []
        self._image = str(image)
        self._last: dict[int, str] = {}
        self._names: dict[CodeType, str | None] = {}

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what is called in the block."""
        for kind in (
            concurrent.futures.ThreadPoolExecutor,
            concurrent.futures.ProcessPoolExecutor,
            multiprocessing.pool.Pool,
        ):
            self._count_pools(kind)
        sys.addaudithook(self._count_reads)
        threading.setprofile(self._follow)
        sys.setprofile(self._follow)
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Follow nothing more."""
        sys.setprofile(None)
        threading.setprofile(None)

    def _follow(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code not in self._names:
            self._names[code] = _module_of(code)
        name = self._names[code]
        if name is None or _is_imported(frame):
            return
        if name not in self.modules:
            self.modules.append(name)
        thread = threading.get_ident()
        self.switches += self._last.get(thread, name) != name
        self._last[thread] = name

    def _count_pools(self, kind: Any) -> None:
        make = kind.__init__

        def counted(pool: Any, *arguments: Any, **options: Any) -> None:
            self.pools.append(kind.__name__)
            make(pool, *arguments, **options)

        kind.__init__ = counted

    def _count_reads(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self.reads += str(arguments[0]) == self._image


def _module_of(code: CodeType) -> str | None:
    if not code.co_filename.startswith(PRODUCT) or code.co_name == "<module>":
        return None
    return str(Path(code.co_filename).relative_to(ROOT)).removesuffix(".py")


def _is_imported(frame: FrameType) -> bool:
    """Whether the body of a class or module calls: that is work of an import, such as a decorator's."""
    above: FrameType | None = frame
    while above is not None:
        if above.f_code.co_name == "<module>" and above.f_code.co_filename.startswith(PRODUCT):
            return True
        above = above.f_back
    return False


def follow(command: str, arguments: list[str], image: Path, *, to_first_checkpoint: bool = False) -> None:
    """Run a command in this process, and print where it has been, as JSON."""
    main = import_module(command).main
    way = Way(image)
    if to_first_checkpoint:
        checkpoint = import_module("rnn_train.checkpoint").Checkpoint
        save = checkpoint.save

        def save_and_stop(*values: Any, **options: Any) -> None:
            save(*values, **options)
            way.stop()

        checkpoint.save = save_and_stop
    with way.followed(), contextlib.redirect_stdout(sys.stderr):
        main(arguments, standalone_mode=False)
    print(json.dumps({name: getattr(way, name) for name in ("modules", "switches", "pools", "reads")}))


def measure(
    command: str, arguments: list[str], image: Path, *, env: dict[str, str] | None = None, to_first: bool = False
) -> dict[str, Any]:
    """Where a command has been, in a process of its own."""
    follow_it = f"follow({command!r}, {arguments!r}, Path({str(image)!r}), to_first_checkpoint={to_first})"
    code = f"from tests.house import *; {follow_it}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=image.parent, capture_output=True, text=True
    )
    if result.returncode:
        raise SystemExit(result.stderr)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the three ways, and the size of the product."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in "ab":
            (folder / "photos" / split).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (28, 28), 60 * number).save(folder / "photos" / split / f"{number}.png")
        image = folder / "one.png"
        Image.new("L", (28, 28), 200).save(image)
        (folder / "run").mkdir()
        training = ["--data", "photos", "--epochs", "1", "--output", "run/model.pt", "--resume", "auto"]
        ways = {"train: to the first checkpoint": measure("rnn_train.cli", training, image, to_first=True)}
        for command in ("rnn_train.cli", training), ("rnn_export.cli", ["run/model.pt", "model.onnx"]):
            measure(*command, image)
        classify = ["--model", "model.onnx", str(image), "--output", "one.csv"]
        ways["infer: one PNG to one CSV row"] = measure("rnn_runtime.cli", ["--provider", "cpu", *classify], image)
        cuda = {
            "PYTHONPATH": os.pathsep.join([str(STAND_IN), str(ROOT)]),
            "LD_LIBRARY_PATH": str(build_driver("cc", folder)),
        }
        classify[-1] = "two.csv"
        ways["infer: --provider cuda, a stand-in"] = measure(
            "rnn_runtime.cli", ["--provider", "cuda", *classify], image, env=cuda
        )
    for name, way in ways.items():
        print(
            f"{name}: {len(way['modules'])} modules, {way['switches']} switches, {len(way['pools'])} pools, "
            f"{way['reads']} reads"
        )
        if "-v" in sys.argv:
            print(*(f"    {module}" for module in way["modules"]), *(f"    {pool}" for pool in way["pools"]), sep="\n")
    files = [path for folder in PRODUCT for path in Path(folder).rglob("*.py")]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    print(f"the product: {lines:,} lines in {len(files)} modules")


if __name__ == "__main__":
    main()
