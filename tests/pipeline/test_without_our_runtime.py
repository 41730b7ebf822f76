"""The programs of the page "Without our runtime", run as they are on the page."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_export import export_onnx
from rnn_runtime import Classifier
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from tests.support.checkpoints import random_checkpoint
from tests.support.encoded_images import pattern
from tests.support.folders import MakeOnce
from tests.support.pages import blocks

pytestmark = pytest.mark.slow

PACKAGES = ("onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0")
# Sizes that shrink, grow, and do both; of 1, 3 and 4 channels.
SHAPES: list[tuple[int, int, int]] = [
    (12, 10, 1),
    (12, 10, 3),
    (12, 10, 4),
    (100, 80, 3),
    (24, 20, 1),
    (37, 41, 4),
    (5, 4, 3),
    (1, 1, 1),
    (300, 4, 3),
    (7, 333, 1),
    (12, 77, 3),
    (13, 10, 4),
    (1000, 1000, 3),
    *((int(size[0]), int(size[1]), 1) for size in np.random.default_rng(0).integers(1, 40, (100, 2))),
]


@pytest.fixture(scope="module", params=[1, 3], ids=["gray", "RGB"])
def classifier(request: pytest.FixtureRequest, make_once: MakeOnce) -> Classifier:
    """A model for images of 12 x 10."""
    channels = request.param

    def fill(folder: Path) -> None:
        mean, std = (0.5,) * channels, (0.5,) * channels
        spec = ModelSpec(ImageSpec(12, 10, channels), ("a", "b", "c"), "gru", hidden_size=16, mean=mean, std=std)
        random_checkpoint(spec).save(folder / "model.pt")
        export_onnx(folder / "model.pt", folder / "model.onnx")

    return Classifier(make_once(f"elsewhere_{channels}", fill) / "model.onnx", provider="cpu")


@pytest.fixture(scope="module")
def packages(make_once: MakeOnce) -> Path:
    """A folder in which onnxruntime's packages for JavaScript are installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node.js and npm")

    def fill(folder: Path) -> None:
        # without scripts: theirs would download CUDA's libraries
        line = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
        subprocess.run(line, check=True, capture_output=True, timeout=500)
        for system in ("darwin", "win32"):  # 190 MB that pytest would keep for its last three runs
            shutil.rmtree(folder / "node_modules/onnxruntime-node/bin/napi-v6" / system)

    return make_once("node_packages", fill)


def program(name: str) -> str:
    """The block of the page whose first line is a comment with this name."""
    (code,) = [block.code for block in blocks("guides/without-our-runtime.md") if block.code.startswith(f"// {name}\n")]
    return code


def run_javascript(packages: Path, folder: Path, package: str, classifier: Classifier, main: str) -> Any:
    """Run a program beside those of the page; gives what it prints as JSON."""
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "model.onnx").symlink_to(classifier.path)
    (folder / "classify.mjs").write_text(program("classify.mjs").replace("onnxruntime-node", package))
    (folder / "pixels.mjs").write_text(program("pixels.mjs"))
    (folder / "main.mjs").write_text(main)
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    line = ["node", "main.mjs"]
    result = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


MAIN = """
import { readFileSync } from "node:fs";
import { channels, classify, height, width } from "./classify.mjs";
import { toModel } from "./pixels.mjs";

const results = [];
for (const [i, shape] of JSON.parse(readFileSync("shapes.json")).entries()) {
  const pixels = toModel(new Uint8Array(readFileSync(`${i}.raw`)), ...shape, { height, width, channels });
  results.push({ pixels: Array.from(pixels), probabilities: Array.from(await classify(pixels)) });
}
console.log(JSON.stringify(results));
"""


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_javascript_gets_our_pixels_and_our_probabilities(
    packages: Path, tmp_path: Path, classifier: Classifier, package: str
) -> None:
    images = [pattern(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    dark_blue = np.zeros((20, 20, 4), np.uint8)  # which a gray model can't see on black
    dark_blue[5:15, 8:12] = 0, 0, 60, 255
    images.append(dark_blue)
    (tmp_path / "shapes.json").write_text(json.dumps([image.shape for image in images]))
    for i, image in enumerate(images):
        (tmp_path / f"{i}.raw").write_bytes(image.tobytes())

    found = run_javascript(packages, tmp_path, package, classifier, MAIN)

    shape = classifier.metadata.spec.image_spec.shape
    pixels = np.array([result["pixels"] for result in found], np.uint8).reshape(-1, *shape)
    expected = classifier.predict(images, top_k=3)
    assert classifier.predict(pixels, top_k=3) == expected  # bit for bit, so the pixels are the same
    rows = np.array([[dict(p.top)[name] for name in classifier.class_names] for p in expected])
    assert np.allclose([result["probabilities"] for result in found], rows, atol=1e-5, rtol=0)


def compiled(folder: Path) -> Path:
    """The page's program in C++."""
    home, compiler = os.environ.get("ONNXRUNTIME_HOME", "/usr"), shutil.which("g++")
    headers = [path for path in (f"{home}/include", f"{home}/include/onnxruntime") if Path(path).is_dir()]
    if compiler is None or not any(Path(path, "onnxruntime_cxx_api.h").exists() for path in headers):
        pytest.skip(
            "needs g++ and onnxruntime's C++ headers: libonnxruntime-dev, or set ONNXRUNTIME_HOME to its folder"
        )
    (folder / "classify.cpp").write_text(program("classify.cpp"))
    line = [compiler, "-std=c++17", "-Wall", "-Werror", "classify.cpp", "-o", "classify"]
    line += [*(f"-I{path}" for path in headers), f"-L{home}/lib", "-lonnxruntime", f"-Wl,-rpath,{home}/lib"]
    subprocess.run(line, cwd=folder, check=True)
    return folder / "classify"


def test_cpp_gets_our_probabilities(tmp_path: Path, classifier: Classifier) -> None:
    image: NDArray[np.uint8] = pattern(*classifier.metadata.spec.image_spec.shape)
    (tmp_path / "model.onnx").symlink_to(classifier.path)

    result = subprocess.run([compiled(tmp_path)], cwd=tmp_path, input=image.tobytes(), capture_output=True, check=True)

    found = [float(line) for line in result.stdout.split()]
    assert np.allclose(found, classifier.predict_proba(image[np.newaxis])[0], atol=1e-5, rtol=0)
