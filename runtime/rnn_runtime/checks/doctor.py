"""What a bug report needs: versions, providers, CUDA's libraries, the model file, and what to do next."""

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TextIO

from rnn_runtime.classifier import Classifier
from rnn_runtime.cores import usable_cores, usable_memory
from rnn_runtime.engine import (
    CUDA_DEFAULTS,
    CudaOptions,
    Provider,
    cuda_major,
    import_onnxruntime,
    installed_packages,
    open_session,
)
from rnn_runtime.engine.cuda import DRIVER, Driver, find_driver, load_library, preload_cuda
from rnn_runtime.errors import MissingPackageError, ModelError
from rnn_runtime.model.file import ModelMetadata

_NOTHING = "nothing to repair"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `examine` found.

    Attributes:
        facts: Pairs of a name and what was found.
        providers: The execution providers that start.
        next_step: The one thing to do next, or that nothing needs repair.
    """

    facts: tuple[tuple[str, str], ...]
    providers: tuple[str, ...]
    next_step: str


def examine(model: Path | None = None, provider: Provider = "auto", *, cuda: CudaOptions = CUDA_DEFAULTS) -> Diagnosis:
    """Examine the installation, the execution providers and a model file. No images are read.

    Args:
        model: A file that `rnn-export` wrote. Without one, or if it is missing or damaged, the providers are started
            with an example model of onnxruntime's.
        provider: The provider that is wanted. With `cuda`, it is a fault if CUDA doesn't start.
        cuda: How to start CUDA.
    """
    driver = find_driver()
    facts = [*_packages(), *_driver_facts(driver)]
    try:
        ort = import_onnxruntime()
        content, model_facts, model_remedy = _examine_model(model)
        opened = open_session(content, "auto", cuda=cuda)
    except MissingPackageError as error:
        if model is not None:
            facts.append(("model", f"{model}: {'not read' if os.path.exists(model) else 'not found'}"))
        return Diagnosis(tuple(facts), (), str(error))
    cuda_state = "starts" if opened.provider == "cuda" else f"doesn't start: {opened.problem}"
    facts += [
        ("onnxruntime", f"{ort.__version__}, in {Path(str(ort.__file__)).parent}"),
        ("compiled in", ", ".join(ort.get_available_providers())),
        *_cuda_facts(ort),
        ("CUDA provider", cuda_state),
        ("CPU provider", "starts"),
        *model_facts,
    ]
    # Without a driver, CUDA isn't expected to start, unless it was asked for.
    wanted = provider == "cuda" or driver is not None or len(installed_packages()) > 1
    cuda_remedy = opened.remedy if wanted else None
    nothing = _NOTHING
    if opened.provider == "cpu" and not wanted and cuda_major() is not None:
        nothing = f"nothing to repair for the CPU. For CUDA: {opened.remedy}"
    providers = ("cuda", "cpu") if opened.provider == "cuda" else ("cpu",)
    return Diagnosis(tuple(facts), providers, cuda_remedy or model_remedy or nothing)


def print_diagnosis(diagnosis: Diagnosis, file: TextIO) -> None:
    """Print one line per fact, and the next step last."""
    width = max(len(name) for name, _ in diagnosis.facts) + 2
    for name, found in diagnosis.facts:
        file.write(f"{name:<{width}}{' '.join(found.split())}\n")
    file.write(f"Next: {diagnosis.next_step}\n")


def _packages() -> list[tuple[str, str]]:
    # torch isn't imported, which takes seconds; its version is enough
    names = ("numpy", "Pillow", "kornia-rs", "click", "msgspec", "torch")
    packages = ", ".join(f"{name} {version}" for name, version in installed_packages().items())
    return [
        ("rnn-onnx", _version("rnn-onnx")),
        ("Python", f"{platform.python_version()}, {sys.executable}"),
        ("system", platform.platform()),
        ("cores", f"{usable_cores()} of {os.cpu_count()}"),
        ("memory", f"{usable_memory() / 1e9:,.1f} GB"),
        *((name, _version(name)) for name in names),
        ("onnxruntime from", packages or "no package"),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver_facts(driver: Driver | None) -> list[tuple[str, str]]:
    if driver is None:
        return [("NVIDIA driver", f"not found ({DRIVER})")]
    if driver.cuda_version is None:
        return [("NVIDIA driver", f"{DRIVER} exists, but isn't NVIDIA's")]
    version = "supports CUDA up to {}.{}".format(*driver.cuda_version)
    if driver.problem:
        return [("NVIDIA driver", f"{version}, but could not start: {driver.problem}")]
    devices = [(f"CUDA device {number}", name) for number, name in enumerate(driver.devices or ())]
    return [("NVIDIA driver", version), *(devices or [("CUDA devices", "none")])]


def _cuda_facts(ort: ModuleType) -> list[tuple[str, str]]:
    major = cuda_major()
    if major is None:
        return [("built for CUDA", "no")]
    preload_cuda(ort)
    libraries = (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}", "libcurand.so.10")
    found = {name: "found" if load_library(name) else "not found" for name in (*libraries, "libcudnn.so.9")}
    return [("built for CUDA", f"{ort.cuda_version}, and cuDNN 9"), *found.items()]


def _examine_model(model: Path | None) -> tuple[bytes, list[tuple[str, str]], str | None]:
    """The model to start providers with, facts about the file, and what to do about it."""
    from onnxruntime.datasets import get_example

    example = Path(get_example("sigmoid.onnx")).read_bytes()  # a single operator
    if model is None:
        return example, [], None
    try:
        metadata = Classifier(model, "cpu", threads=1).metadata
        content = model.read_bytes()
        return content, [("model", f"{model}, {len(content):,} bytes"), *_model_facts(metadata)], None
    except (ModelError, OSError) as error:
        remedy = "Write a model with: rnn-export model.pt model.onnx"
        if model.suffix == ".onnx" and model.is_file():  # not a checkpoint or a folder
            remedy = f"Copy {model} again, or write it with: rnn-export model.pt {model}"
        return example, [("model", str(error))], remedy


def _model_facts(metadata: ModelMetadata) -> list[tuple[str, str]]:
    spec = metadata.spec
    return [
        ("network", f"{spec.cell_name}, {spec.num_layers} layers of {spec.hidden_size}"),
        ("images", f"{spec.image_spec}; {len(spec.class_names)} classes"),
        ("export", json.dumps(metadata.export)),
        ("checkpoint", f"SHA-256 {metadata.checkpoint_sha256}"),
    ]
