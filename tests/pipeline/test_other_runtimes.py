"""Runtimes other than onnxruntime compute the same: what the page "Without our runtime" says of them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from rnn_export import export_onnx
from rnn_runtime import Classifier
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from tests.pipeline.test_without_our_runtime import packages
from tests.support.checkpoints import random_checkpoint
from tests.support.folders import MakeOnce

__all__ = ["packages"]  # a fixture

IMAGES = np.random.default_rng(1).integers(0, 256, (16, 28, 28, 1), np.uint8)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn unrolled": ("rnn", {"graph": "unrolled"}),
    "rnn wavefront": ("rnn", {"graph": "wavefront"}),
    "rnn scan": ("rnn", {"graph": "scan"}),
    "rnn operator": ("rnn", {"graph": "operator"}),
    "gru": ("gru", {}),
    "lstm": ("lstm", {}),
    "lstm fp16": ("lstm", {"precision": "fp16"}),
    "lstm int8": ("lstm", {"precision": "int8"}),
}
# With float32, rounding. Float16 and int8 are rounded by each runtime in its own places.
TOLERANCES = {"lstm fp16": 1e-3, "lstm int8": 1e-2}


@pytest.fixture(scope="module")
def models(make_once: MakeOnce) -> Path:
    """A folder with the models."""

    def fill(folder: Path) -> None:
        for name, (cell, options) in MODELS.items():
            spec = ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"), cell)  # type: ignore[arg-type]
            random_checkpoint(spec).save(folder / "model.pt")
            export_onnx(folder / "model.pt", folder / f"{name}.onnx", **options)

    return make_once("for_other_runtimes", fill)


def expected(models: Path, name: str) -> NDArray[np.float32]:
    return Classifier(models / f"{name}.onnx", provider="cpu").predict_logits(IMAGES)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_reference_gives_our_logits(models: Path, name: str) -> None:
    path = str(models / f"{name}.onnx")

    if name == "lstm int8":
        with pytest.raises(NotImplementedError, match="DynamicQuantizeLSTM"):
            ReferenceEvaluator(path)
    else:
        found = ReferenceEvaluator(path).run(["logits"], {"images": IMAGES})
        logits = np.asarray(found[0])  # type: ignore[index]
        assert np.abs(logits - expected(models, name)).max() <= TOLERANCES.get(name, 2e-6)


MAIN = """
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const images = new ort.Tensor("uint8", new Uint8Array(readFileSync("images.raw")), [16, 28, 28, 1]);
const found = {};
for (const name of JSON.parse(readFileSync("names.json"))) {
  const session = await ort.InferenceSession.create(`${name}.onnx`);
  found[name] = Array.from((await session.run({ images })).logits.data);
}
console.log(JSON.stringify(found));
process.exit(0);
"""


@pytest.mark.slow
def test_onnxruntime_web_gives_our_logits(packages: Path, models: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    for name in MODELS:
        (tmp_path / f"{name}.onnx").symlink_to(models / f"{name}.onnx")
    (tmp_path / "main.mjs").write_text(MAIN)
    (tmp_path / "images.raw").write_bytes(IMAGES.tobytes())
    (tmp_path / "names.json").write_text(json.dumps([*MODELS]))

    result = subprocess.run(["node", "main.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)

    found = json.loads(result.stdout)
    assert set(found) == set(MODELS)
    for name, values in found.items():
        logits = np.array(values, np.float32).reshape(16, 10)
        assert np.abs(logits - expected(models, name)).max() <= TOLERANCES.get(name, 2e-6), name
