"""Using the library changes nothing in the process that uses it."""

import subprocess
import sys
from pathlib import Path

import pytest

# Prints what changed in a process between its start and the end of a piece of code.
OBSERVER = """
import logging, os, signal, sys, warnings

def observe():
    return {
        "warning filters": list(warnings.filters),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "loggers": {name: logging.getLogger(name).level for name in (None, *logging.root.manager.loggerDict)
                    if name is None or isinstance(logging.root.manager.loggerDict[name], logging.Logger)},
        "stderr": (sys.stderr, os.fstat(2).st_ino),
        "stdout": (sys.stdout, os.fstat(1).st_ino),
        "folder": os.getcwd(),
    }

import numpy, PIL.Image
before = observe()
handlers = []
replaced = signal.signal
signal.signal = lambda *arguments: handlers.append(arguments) or replaced(*arguments)
duplicated = os.dup2
os.dup2 = lambda *arguments, **options: handlers.append(arguments) or duplicated(*arguments, **options)
{code}
after = observe()
print([name for name in before if name != "loggers" and before[name] != after[name]])
print([name for name, level in before["loggers"].items() if after["loggers"][name] != level])
print(handlers)
"""


def changes(folder: Path, code: str) -> str:
    program = OBSERVER.replace("{code}", code)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_classifying_changes_nothing(digits_model: Path, digits_images: Path, provider: str) -> None:
    code = (
        "from rnn_runtime import Classifier\n"
        f"classifier = Classifier({str(digits_model)!r}, provider={provider!r})\n"
        f"path = {str(next(digits_images.glob('*/*.png')))!r}\n"
        "with open(path, 'rb') as file, PIL.Image.open(path) as image:\n"
        "    images = [path, file, file, image, image.copy(), numpy.asarray(image), b'no image']\n"
        "    predictions = [*classifier.predict(images), *map(classifier.predict, images)]\n"
        "assert len({prediction.label for prediction in predictions}) == 2\n"
    )

    assert changes(digits_images, code) == "[]\n[]\n[]\n"


def test_checks_change_nothing(digits_model: Path, tmp_path: Path) -> None:
    code = (
        "from rnn_runtime import Classifier\n"
        "from rnn_runtime.checks.self_check import self_check\n"
        f"self_check(Classifier({str(digits_model)!r}, provider='cpu'))"
    )

    assert changes(tmp_path, code) == "[]\n[]\n[]\n"


def test_a_run_restores_what_it_changes(digits_model: Path, digits_images: Path, tmp_path: Path) -> None:
    code = (
        "from rnn_runtime import Classifier, classify_files, find_images\n"
        f"classifier = Classifier({str(digits_model)!r}, provider='cpu')\n"
        f"classify_files(classifier, find_images([{str(digits_images)!r}], recursive=True), 'out.csv')"
    )

    assert changes(tmp_path, code).startswith("[]\n[]\n[(<Signals.SIG")
