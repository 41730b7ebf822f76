"""The file `model.onnx`: read within limits, used only if it is exactly what `rnn-export` wrote, and its metadata.

The SHA-256 is compared before onnxruntime sees any of the file. So damage is always found, and a parser that isn't made
for damaged files never sees one. A file that somebody made with a SHA-256 to match is held to the fields of ONNX that
`rnn-export` writes: it can't name other files. docs/reference/model-file.md lists the keys of the metadata.
"""

import base64
import hashlib
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self, TypedDict

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from rnn_runtime.errors import ModelError, SettingsError
from rnn_runtime.model.protobuf import check_fields
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import FromZero, Positive
from rnn_runtime.text import shorten

FORMAT_VERSION = 7
MAX_MODEL_BYTES = 1 << 30
NO_SHA256 = "0" * 64
UNSEALED = {"model_sha256": NO_SHA256}  # metadata that `seal_model` needs in a model
_MAX_GOLDEN = 1024  # samples

# An entry of the metadata in protobuf: key and value, each preceded by its length.
_SHA256 = re.compile(rb"\n\x0cmodel_sha256\x12\x40([0-9a-f]{64})")
_FORMAT_VERSION = re.compile(rb"\n\x0eformat_version\x12[\x01-\x20]([0-9]+)")
_ORT_IDENTIFIER = b"ORTM"  # at byte 4: onnxruntime takes such a file for its own format, whatever else it is

_WHAT_IS_OURS = (
    "such a model has metadata of format 'rnn-onnx', the input images of uint8 (batch, height, width, channels), and "
    "the outputs logits and probabilities of float32 (batch, classes). Write one with: rnn-export model.pt model.onnx"
)


def read_model(path: str | Path) -> bytes:
    """Read a model file.

    Returns:
        Its content, exactly as `rnn-export` wrote it.

    Raises:
        ModelError: the file is missing, too large, damaged, or written by another program or another version of this
            one. The text doesn't name the file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ModelError("not a regular file")
        if status.st_size > MAX_MODEL_BYTES:
            raise ModelError(f"the file has {status.st_size:,} bytes; a model has at most {MAX_MODEL_BYTES:,}")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise ModelError(f"{reason}. Write a model with: rnn-export model.pt model.onnx") from None
    check_model(data)
    return data


def check_model(data: bytes) -> None:
    """Check that the content of a model file is exactly what `rnn-export` wrote.

    Raises:
        ModelError: as for `read_model`.
    """
    if data[:2] == b"PK":  # a ZIP archive, as torch.save writes
        raise ModelError("a checkpoint, not a model. Export it first: rnn-export model.pt model.onnx")
    version = _FORMAT_VERSION.search(data)
    if version:
        _check_format_version(version[1].decode())
    if data[4:8] == _ORT_IDENTIFIER:
        raise ModelError(
            "a model in onnxruntime's own format (ORT), which isn't read. Export the checkpoint: rnn-export model.pt "
            "model.onnx"
        )
    found = _SHA256.search(data)
    if not found:
        raise ModelError(f"not a model that rnn-export wrote, or a damaged one: {_WHAT_IS_OURS}")
    if _sha256(data, found) != found[1]:
        raise ModelError(
            "damaged, or changed by another program: its SHA-256 differs from the one that rnn-export stored in it. "
            "Copy or export it again"
        )
    check_fields(data)  # whoever changed it may have stored a new SHA-256


def stored_sha256(data: bytes) -> str:
    """The SHA-256 in a model file that `check_model` has passed, in hexadecimal. Equal files have equal ones."""
    found = _SHA256.search(data)
    return found[1].decode() if found else NO_SHA256


def seal_model(data: bytes) -> bytes:
    """Store the SHA-256 in a model file, in place of `UNSEALED` in its metadata.

    It is the SHA-256 of the file with 64 zeros in that place.
    """
    found = _SHA256.search(data)
    if not found or found[1] != NO_SHA256.encode():
        raise ModelError("its metadata has no place for a SHA-256, or already holds one")
    return data[: found.start(1)] + _sha256(data, found) + data[found.end(1) :]


def _sha256(data: bytes, found: "re.Match[bytes]") -> bytes:
    digest = hashlib.sha256(memoryview(data)[: found.start(1)])
    digest.update(NO_SHA256.encode())
    digest.update(memoryview(data)[found.end(1) :])
    return digest.hexdigest().encode()


def _check_format_version(version: str) -> None:
    if version != str(FORMAT_VERSION):
        newer = version.isdecimal() and int(version) > FORMAT_VERSION
        raise ModelError(
            f"a model of {'a newer' if newer else 'an older'} rnn-onnx (format version {shorten(repr(version), 40)}; "
            f"this one reads {FORMAT_VERSION}). {'Upgrade rnn-onnx' if newer else 'Export the checkpoint again'}"
        )


class _Tolerances(TypedDict, total=False):
    """What this program reads of a parity report."""

    atol: FromZero
    rtol: FromZero


# What each text holds, as JSON. (msgspec's own JSON refuses the lone surrogates of file names that aren't UTF-8.)
_PLAIN = {"metrics": dict[str, Any], "export": dict[str, Any], "parity": _Tolerances, "temperature": Positive | None}
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class GoldenSamples:
    """Images and PyTorch's logits for them.

    `images` is uint8 `(samples, height, width, channels)`, `logits` float32 `(samples, classes)`.
    """

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]

    def to_text(self) -> str:
        """The text that is stored: base64 of a compressed NumPy archive."""
        arrays = io.BytesIO()
        np.savez_compressed(arrays, images=self.images, logits=self.logits)
        return base64.b64encode(arrays.getvalue()).decode("ascii")


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Everything that a model file contains besides its graph.

    `metrics` are the training's (`test_accuracy`, `test_calibration_error` ...), `export` says how the file was made
    (graph form, opset, versions), `parity` is the report that `rnn-export` printed, with `atol` and `rtol`, the
    tolerances that it passed. These three hold plain JSON values. `temperature` is what the graph divides logits by
    before softmax; None if it doesn't.
    """

    spec: ModelSpec
    golden: GoldenSamples
    checkpoint_sha256: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = None

    def to_props(self) -> dict[str, str]:
        """Convert to the texts to store. `from_props` reverses it."""
        return {
            "format": "rnn-onnx",
            "format_version": str(FORMAT_VERSION),
            "model": json.dumps(self.spec.to_dict()),
            "checkpoint_sha256": self.checkpoint_sha256,
            "metrics": json.dumps(self.metrics),
            "export": json.dumps(self.export),
            "parity": json.dumps(self.parity),
            "temperature": json.dumps(self.temperature),
            "golden_samples": self.golden.to_text(),
        }

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> Self:
        """Rebuild the metadata that `to_props` made.

        Raises:
            ModelError: it is missing, of another format, or damaged; the text doesn't name the file.
        """
        if props.get("format") != "rnn-onnx":
            raise ModelError("not a model that rnn-export wrote: its metadata has no format 'rnn-onnx'")
        _check_format_version(props.get("format_version", ""))
        try:
            spec = ModelSpec.from_dict(json.loads(props["model"]))
            golden = _read_golden(props["golden_samples"], spec)
            sha256 = _checked("checkpoint_sha256", props["checkpoint_sha256"], _Sha256)
            plain = {key: _checked(key, json.loads(props[key]), hint) for key, hint in _PLAIN.items()}
            return cls(spec, golden, sha256, **plain)
        except KeyError as error:
            raise ModelError(f"its metadata lacks {error}; export it again") from None
        except (SettingsError, ValueError, RecursionError) as error:
            raise ModelError(f"its metadata is damaged: {error}") from None


def exported_precision(props: Mapping[str, str]) -> str | None:
    """The precision that a model was exported with: `fp32`, `fp16` or `int8`. None if its metadata doesn't say."""
    try:
        precision = _checked("export", json.loads(props["export"]), dict[str, Any]).get("precision")
    except (KeyError, ValueError, RecursionError):
        return None
    return precision if isinstance(precision, str) else None


def _checked(key: str, value: Any, hint: Any) -> Any:
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ValueError(f"{key}: {error}") from None
    return value


def _read_golden(text: str, spec: ModelSpec) -> GoldenSamples:
    shape, classes = spec.image_spec.shape, len(spec.class_names)
    try:
        content = base64.b64decode(text, validate=True)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_GOLDEN * (math.prod(shape) + 4 * classes + 1):
            raise ValueError(f"golden samples: more than {_MAX_GOLDEN}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            golden = GoldenSamples(arrays["images"], arrays["logits"])
    except Exception as error:  # of a damaged archive, NumPy and zipfile raise anything
        raise ValueError(f"golden samples: {error}") from None
    samples = len(golden.images)
    if golden.images.dtype != np.uint8 or golden.images.shape != (samples, *shape) or not samples:
        raise ValueError("golden samples: the images don't fit the model")
    if golden.logits.dtype != np.float32 or golden.logits.shape != (samples, classes):
        raise ValueError("golden samples: the logits don't fit the model")
    return golden
