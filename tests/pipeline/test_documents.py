"""What the documents say and can be checked."""

import re
import runpy
from pathlib import Path

import onnx
import pytest
import torch

from tests.support.commands import Run

ROOT = Path(__file__).parents[2]
OTHER_TOOLS = re.compile(
    r"pip |--constraint|--hypothesis-profile|uvicorn|gunicorn|tensorboard --logdir|split --|npm |g\+\+|docker |Tab"
    r"|#SBATCH|curl |tritonserver "
)
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())

    assert all((document.parent / link).exists() for link in links), links


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_be_filled_in(document: Path) -> None:
    assert not re.findall(r"TODO|FIXME|TBD|\b[A-Z]+_(?:SECTION|PERCENT|TIME)\b", document.read_text())


def test_the_readme_has_at_most_110_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)

    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


# The changelog names mistakes, too.
@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.stem != "CHANGELOG"], ids=lambda path: path.name
)
def test_options_exist(document: Path) -> None:
    from torch.distributed.run import get_args_parser

    from rnn_export import cli as export
    from rnn_runtime import cli as infer
    from rnn_runtime import toolbox
    from rnn_runtime.serve import cli as serve
    from rnn_train import cli as train
    from rnn_train import write_images

    mains = (train.main, export.main, infer.main, serve.main, write_images.main)
    known = {
        option
        for command in (*mains, *toolbox.main.commands.values())
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    if "torchrun" in document.read_text():
        known |= {option for action in get_args_parser()._actions for option in action.option_strings}
    # options of our commands, not of the tools beside them
    text = "\n".join(line for line in document.read_text().splitlines() if not OTHER_TOOLS.search(line))

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known


@pytest.mark.parametrize("command", ["rnn-train", "rnn-export", "rnn-infer", "rnn-onnx check"])
def test_the_reference_shows_what_help_prints(command: str, run: Run) -> None:
    hook = runpy.run_path(str(ROOT / "docs" / "command_help.py"))

    page = hook["on_page_markdown"]((ROOT / "docs" / "reference" / "cli.md").read_text())

    assert run(*command.split(), "--help", env={"COLUMNS": "80"}).stdout in page


def test_the_reference_lists_the_keys_of_a_checkpoint(digits_checkpoint: Path) -> None:
    page = (ROOT / "docs" / "reference" / "checkpoint.md").read_text()

    content = torch.load(digits_checkpoint, weights_only=True)

    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(content)


def test_the_reference_lists_the_keys_of_a_models_metadata(digits_model: Path) -> None:
    page = (ROOT / "docs" / "reference" / "model-file.md").read_text().split("## Metadata")[1].split("## ")[0]

    properties = onnx.load(digits_model).metadata_props

    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(entry.key for entry in properties)
