"""Kills each process that opens a file named `poison.png` and isn't the one that listed it."""

import os
import sys


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith("poison.png") and "ray" in sys.modules:
        os._exit(1)


sys.addaudithook(_watch)
