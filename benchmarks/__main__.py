"""Run the benchmarks: print one table, and write `benchmarks/results/<date>-<kind of processor>-<groups>.json`."""

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import models, processes, serving, shards, torchrun, training, versions
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
VECTORS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("numpy", "onnx", "onnxruntime", "kornia-rs", "pillow", "torch", "torchvision")


@click.command()
@click.argument("groups", nargs=-1, type=click.Choice(list(GROUPS)))
@click.option(
    "--against", metavar="COMMIT", help="Compare with another commit of this repository, in less than three minutes."
)
def main(groups: tuple[str, ...], against: str | None) -> None:
    """Run GROUPS of benchmarks, or all."""
    # Installed packages have bytecode. What starts here keeps its own as well, in the round that warms up.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if against:
        print_rows(list(versions.run(against)))
        print(json.dumps(describe_machine()))
        return
    rows = []
    for name in groups or GROUPS:
        for row in GROUPS[name]():
            rows.append(row)
            print(f"{row.what}: {row.ratio:.2f} x {row.peer}", file=sys.stderr)
    print_rows(rows)
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    machine = describe_machine()
    # Machines of several kinds leave their results side by side.
    path = RESULTS / ("-".join([f"{now:%Y-%m-%d}", _kind(machine), *groups]) + ".json")
    content = {
        "time": now.isoformat(timespec="seconds"),
        "machine": machine,
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


def _kind(machine: dict[str, Any]) -> str:
    """Maker, family and model, such as `amd-26-2`, and the widest vectors of float32."""
    maker = next((name for name in ("amd", "intel") if name in machine["processor"].lower()), platform.machine())
    vectors = machine["vectors"]
    widest = "avx512" if "avx512f" in vectors else "avx2" if "avx2" in vectors else "narrow"
    return "-".join([maker, *machine["family and model"].split(", "), widest])


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(reversed([re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line]))
    flags = facts.get("flags", "").split()
    return {
        "processor": facts.get("model name", platform.processor()),
        # Names of rented machines are often just "AMD EPYC": family 25 is Zen 3 and 4, family 26 is Zen 5.
        "family and model": f"{facts.get('cpu family', '?')}, {facts.get('model', '?')}",
        "vectors": [flag for flag in VECTORS if flag in flags],
        "threads": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset")},
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }


if __name__ == "__main__":
    main()
