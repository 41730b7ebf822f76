"""The model alone, on arrays in memory: against PyTorch eager, the stock exports and the machine's limit."""

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import product_limit
from benchmarks.measure import Rounds, Row, compare, race_once, race_throughput
from benchmarks.peers.networks import ArticleNetwork, export_dynamo, export_legacy, open_session, run_session
from benchmarks.product_limit import MFLOP_AN_IMAGE
from rnn_export import export_onnx
from rnn_export.graph import Precision, build_onnx_model
from rnn_runtime import Classifier
from rnn_runtime.engine import create_session
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import Data, DataSource, LabeledImages
from rnn_train.model import ImageRNN
from rnn_train.profile import fit_profile
from rnn_train.settings import TrainSettings

_PROFILED = 1000  # pictures
EAGER, LEGACY, DYNAMO = "PyTorch eager", "legacy export", "dynamo export"

# peer -> batch size -> least ratio
TARGETS: dict[str, dict[str, dict[int, float]]] = {
    "rnn": {
        EAGER: {1: 3.0, 8: 2.0, 32: 2.0, 64: 2.0, 256: 2.0, 1024: 2.0},
        LEGACY: {1: 1.0, 256: 3.0, 1024: 3.0},
        DYNAMO: {64: 1.25, 256: 1.25, 1024: 1.25},
    },
    "gru": {LEGACY: {1: 1.0, 64: 1.0, 1024: 1.0}, DYNAMO: {1: 1.0, 64: 1.0, 1024: 1.0}},
    "lstm": {LEGACY: {1: 1.0, 64: 1.0, 1024: 1.0}, DYNAMO: {1: 1.0, 64: 1.0, 1024: 1.0}},
}


@dataclass(frozen=True)
class Peers:
    """One network, in our form and in the others'."""

    model: Path
    network: ArticleNetwork
    legacy: bytes
    dynamo: bytes


def run() -> Iterator[Row]:
    """All comparisons of this module."""
    yield from _throughputs()
    yield from _int8()
    yield from _tall_images()


def make_peers(folder: Path, cell: str, image: ImageSpec) -> Peers:
    """Random weights, the same for all. Ours also tells images that are unlike smooth pictures."""
    pictures = np.stack([np.asarray(picture) for picture in smooth_pictures(_PROFILED, image.shape)])
    shown = LabeledImages(pictures.reshape(-1, *image.shape), np.zeros(_PROFILED, np.int64))
    profile = fit_profile(Data(shown, None, None, ("0", "1"), aspect_ratios=(image.width / image.height,) * 2))
    spec = ModelSpec(image, tuple("0123456789"), cell, profile=profile)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = ArticleNetwork(cell, spec.input_size).eval()
    weights = {name.replace("fc.", "linear."): value for name, value in network.state_dict().items()}
    samples = torch.randint(0, 256, (16, *image.shape), dtype=torch.uint8)
    source = DataSource(data="random images")
    Checkpoint(spec, weights, TrainSettings(), source, {"epochs": []}, samples, {}).save(folder / "model.pt")
    export_onnx(folder / "model.pt", folder / "model.onnx")
    example = torch.zeros(2, image.height, spec.input_size)
    return Peers(
        folder / "model.onnx", network, export_legacy(network, example), export_dynamo(network, example, folder)
    )


def smooth_pictures(count: int, shape: tuple[int, int, int]) -> Iterator[Image.Image]:
    """Smooth random pictures, which compress about as real ones do."""
    generator = np.random.default_rng(0)
    height, width, channels = shape
    for _ in range(count):
        coarse = generator.integers(0, 256, (height // 4, width // 4, channels), np.uint8)
        yield Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BILINEAR)


def _throughputs() -> Iterator[Row]:
    for cell, targets in TARGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            peers = make_peers(Path(folder), cell, ImageSpec(28, 28, 1))
            for batch in sorted({size for sizes in targets.values() for size in sizes}):
                contestants = _contestants(peers, batch, ImageSpec(28, 28, 1))
                rounds = race_throughput(contestants, batch)
                for peer in (EAGER, LEGACY, DYNAMO):
                    target = targets.get(peer, {}).get(batch)
                    yield compare(f"{cell}, batch {batch}", "images/s", rounds, peer, target=target)
                if cell == "rnn" and batch >= 64:
                    yield _against_the_machine(batch, contestants)


def _contestants(peers: Peers, batch: int, image: ImageSpec) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *image.shape), np.uint8)
    # The others get floats, ready made: what turning bytes into floats costs them isn't counted.
    floats = (pixels / 255).astype(np.float32).reshape(batch, image.height, -1)
    classifier = Classifier(peers.model, provider="cpu")
    legacy, dynamo, tensor = open_session(peers.legacy), open_session(peers.dynamo), torch.from_numpy(floats)

    def eager() -> NDArray[np.float32]:
        with torch.inference_mode():
            return peers.network(tensor).numpy()  # type: ignore[no-any-return]

    contestants: dict[str, Callable[[], NDArray[np.float32]]] = {
        "ours": lambda: classifier.predict_logits(pixels),
        EAGER: eager,
        LEGACY: lambda: run_session(legacy, floats),
        DYNAMO: lambda: run_session(dynamo, floats),
    }
    for name, contestant in contestants.items():
        assert np.allclose(contestant(), eager(), atol=1e-4), name
    return contestants


def _against_the_machine(batch: int, contestants: dict[str, Any]) -> Row:
    def ours() -> float:
        start = time.perf_counter()
        calls = math.ceil(16384 / batch)
        for _ in range(calls):
            contestants["ours"]()
        return calls * batch / (time.perf_counter() - start)

    def limit() -> float:
        return product_limit.measure(batch) * 1e3 / MFLOP_AN_IMAGE

    rounds = race_once({"ours": ours, "float32 products": limit})
    return compare(f"rnn, batch {batch}", "images/s", rounds, "float32 products", target=0.85)


def _int8() -> Iterator[Row]:
    """`rnn-export --precision int8` against float32, both with onnxruntime's threads, as `Classifier` runs them."""
    spec = ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"), "lstm")
    torch.manual_seed(0)
    weights = {name: tensor.numpy() for name, tensor in ImageRNN(spec).state_dict().items()}
    threads = len(os.sched_getaffinity(0))
    precisions: dict[str, Precision] = {"ours": "int8", "fp32": "fp32"}
    sessions = {
        name: create_session(build_onnx_model(spec, weights, precision=precision).SerializeToString(), threads=threads)
        for name, precision in precisions.items()
    }
    for batch in (1, 64, 256):
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), np.uint8)
        contestants = {
            name: (lambda session=session, pixels=pixels: session.run(["logits"], {"images": pixels}))
            for name, session in sessions.items()
        }
        yield compare(f"lstm int8, batch {batch}", "images/s", race_throughput(contestants, batch), "fp32", target=1.0)


def _tall_images() -> Iterator[Row]:
    image = ImageSpec(512, 32, 1)
    with tempfile.TemporaryDirectory() as folder:
        peers = make_peers(Path(folder), "rnn", image)

        def opening(open_model: Any) -> Any:
            def timed() -> float:
                start = time.perf_counter()
                open_model()
                return time.perf_counter() - start

            return timed

        rounds: Rounds = race_once(
            {
                "ours": opening(lambda: Classifier(peers.model, provider="cpu")),
                LEGACY: opening(lambda: open_session(peers.legacy)),
                DYNAMO: opening(lambda: open_session(peers.dynamo)),
                "a second": lambda: 1.0,
            }
        )
        yield compare("512 x 32, opening a session", "s", rounds, LEGACY, target=1.0)
        yield compare("512 x 32, opening a session", "s", rounds, DYNAMO, target=1.0)
        yield compare("512 x 32, opening a session", "s", rounds, "a second", target=1.0)
        rounds = race_throughput(_contestants(peers, 64, image), 64, seconds=1)
        for peer in (EAGER, LEGACY, DYNAMO):
            yield compare("rnn 512 x 32, batch 64", "images/s", rounds, peer, target=None if peer is EAGER else 1.0)
