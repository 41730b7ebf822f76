"""Folders that several tests, and several workers, share."""

from collections.abc import Callable
from pathlib import Path

# The fixture `make_once`: the name of a folder, and what puts files into it if nobody has yet.
MakeOnce = Callable[[str, Callable[[Path], object]], Path]
