"""The code of the guide to Python, run as it is on the page."""

import contextlib
import io
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.pages import blocks, without_numbers

pytestmark = pytest.mark.slow

BLOCKS = [block for block in blocks("guides/python.md") if block.language == "python"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guide's examples have run, up to the notebook."""
    folder = tmp_path_factory.mktemp("guide")
    names: dict[str, object] = {"__name__": "guide"}
    with contextlib.chdir(folder):
        for block in BLOCKS:
            if block.heading == "In a notebook":
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(block.code, names)
            assert without_numbers(output.getvalue()) == without_numbers(block.output or ""), block.code
    return folder


def test_examples_run_and_print_what_the_page_shows(folder: Path) -> None:
    assert (folder / "results.csv").read_text().count("\n") == 21


def test_examples_for_a_notebook_show_a_bar_and_a_plot(folder: Path) -> None:
    setup = "from rnn_runtime import Classifier\nclassifier = Classifier('model.onnx', provider='cpu')\n"
    imports = next(block.code for block in BLOCKS).split("\n\n")[0]
    cells = [setup + imports, *(block.code for block in BLOCKS if block.heading == "In a notebook")]
    new: Any = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(folder)}}

    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()

    _, training, plotting = (cell.outputs for cell in notebook.cells)
    bars = [output.data for output in training if output.output_type == "display_data"]
    assert len(bars) == 1  # drawn anew in its place
    assert "75/75" in bars[0]["text/html"]
    printed = "".join(output.text for output in training if output.output_type == "stream" and output.name == "stdout")
    assert printed.count("Epoch [") == 5
    assert "precision" in printed
    assert "Accuracy of the network on the 360 test images" in printed
    assert "image/png" in [kind for output in plotting for kind in output.data]
