"""Run the benchmarks: print one table, and write `benchmarks/results/<date>.json`."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import models, processes, serving, shards, torchrun, training
from benchmarks.measure import Row
from rnn_runtime.files.atomic import atomic_write

GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "models": models.run,
    "processes": processes.run,
    "serving": serving.run,
    "shards": shards.run,
    "torchrun": torchrun.run,
    "training": training.run,
}
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "onnx", "onnxruntime", "kornia-rs", "pillow", "torch", "torchvision")


@click.command()
@click.argument("groups", nargs=-1, type=click.Choice(list(GROUPS)))
def main(groups: tuple[str, ...]) -> None:
    """Run GROUPS of benchmarks, or all."""
    rows = []
    for name in groups or GROUPS:
        for row in GROUPS[name]():
            rows.append(row)
            print(f"{row.what}: {row.ratio:.2f} x {row.peer}", file=sys.stderr)
    print_rows(rows)
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    path = RESULTS / f"{now:%Y-%m-%d}{'-' + '-'.join(groups) if groups else ''}.json"
    content = {
        "time": now.isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "rows": list(map(asdict, rows)),
    }
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    print(f"Wrote {path}")


def print_rows(rows: list[Row]) -> None:
    """The table: medians, the median of the rounds' ratios with its quartiles, and the target."""
    table = Table("what", "ours", "compared with", "theirs", "ratio", "quartiles", "target", "")
    for row in rows:
        low, high = row.spread
        target = "" if row.target is None else f"{row.target:.2f}"
        mark = {None: "", True: "yes", False: "NO"}[row.reached]
        figures = (f"{row.ours:,.4g} {row.unit}", row.peer, f"{row.theirs:,.4g}", f"{row.ratio:.2f}")
        table.add_row(row.what, *figures, f"{low:.2f} - {high:.2f}", target, mark)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def describe_machine() -> dict[str, object]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }


if __name__ == "__main__":
    main()
