"""How many images a core runs at once, so that what it works on stays in its cache."""

import re
from functools import cache
from pathlib import Path

from rnn_runtime.model.spec import ModelSpec

_KIB = 1024
_USUAL_BYTES = 512 * _KIB  # the least of the servers' processors in use: Zen 3
_FEWEST, _MOST = 16, 256  # images per run; beyond, nothing is gained (docs/explanation/measurements.md)
_OPERATOR_IMAGES = 64  # GRU and LSTM: their kernels divide a batch by themselves
_HIDDEN_STATES = 12  # per image and direction, the products of several steps counted
_FLOAT_BYTES = 4


def images_per_run(spec: ModelSpec) -> int:
    """The most images that a thread runs at once.

    For a vanilla RNN, their pixels and hidden states fill the second-level cache of a core. On Linux, the kernel tells
    its size; elsewhere, 512 KiB are assumed.
    """
    if spec.cell != "rnn":
        return _OPERATOR_IMAGES
    values = spec.image_spec.height * spec.input_size + _HIDDEN_STATES * spec.num_directions * spec.hidden_size
    return min(max(_second_level_bytes() // (_FLOAT_BYTES * values), _FEWEST), _MOST)


@cache
def _second_level_bytes() -> int:
    """The size that Linux tells in sysfs (Documentation/ABI/testing/sysfs-devices-system-cpu in its source)."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = (index / "level").read_text(), (index / "size").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        found = re.fullmatch(r"(\d+)K\s*", size)
        if level.strip() == "2" and found:
            return int(found[1]) * _KIB
    return _USUAL_BYTES
