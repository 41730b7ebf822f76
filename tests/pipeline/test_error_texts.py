"""Library errors speak Python: arguments in backticks, which each command shows as its own options."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from rnn_export import cli as export
from rnn_runtime import cli as infer
from rnn_runtime import toolbox
from rnn_runtime.serve import cli as serve
from rnn_train import cli as train

ROOT = Path(__file__).parents[2]
PACKAGES: dict[str, list[click.Command]] = {
    "runtime/rnn_runtime": [infer.main, *toolbox.main.commands.values(), serve.main],
    "train/rnn_train": [train.main],
    "export/rnn_export": [export.main],
}


# Named in errors that only a caller from Python can get.
PYTHON_ONLY = {"images", "predict", "variants"}


def texts_of(package: str) -> Iterator[tuple[str, str]]:
    """Every piece of text in a library module of a package, but for documentation, with the module's path."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name in ("cli.py", "toolbox.py", "write_images.py", "report.py") or path.parent.name == "command":
            continue
        tree = ast.parse(path.read_text())
        documentation = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documentation:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


# Errors of the export are given in parts.
@pytest.mark.parametrize("package", ["runtime/rnn_runtime", "train/rnn_train"])
def test_arguments_in_errors_are_options_of_a_command(package: str) -> None:
    known = {param.name for command in PACKAGES[package] for param in command.params} | PYTHON_ONLY
    named = {(place, name) for place, text in texts_of(package) for name in re.findall(r"`(\w+)(?:=|\(|`)", text)}

    assert named
    assert not {(place, name) for place, name in named if name not in known}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_library_text_names_an_option(package: str) -> None:
    # whole commands, to be typed anywhere, have their options
    found = [(place, text) for place, text in texts_of(package) if re.search(r"(?<![\w-])--[a-z]", text)]

    assert not [(place, text) for place, text in found if not re.search(r"\b(pip|rnn-\w+|find|curl|torchrun) ", text)]
