"""The metadata of a model file, stored as onnx `metadata_props`. docs/reference/model-file.md lists the keys.

The SHA-256 among them is that of the file's bytes: `rnn_runtime.model.file` stores and compares it.
"""

import base64
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self, TypedDict

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from rnn_runtime.errors import ModelError, SettingsError
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import FromZero, Positive
from rnn_runtime.text import shorten

FORMAT_VERSION = 5
_MAX_GOLDEN = 1024  # samples


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
        check_format_version(props.get("format_version", ""))
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


def check_format_version(version: str) -> None:
    """Check that this program reads metadata of a version.

    Raises:
        ModelError: it reads another one only; the text doesn't name the file.
    """
    if version != str(FORMAT_VERSION):
        newer = version.isdecimal() and int(version) > FORMAT_VERSION
        raise ModelError(
            f"a model of {'a newer' if newer else 'an older'} rnn-onnx (format version {shorten(repr(version), 40)}; "
            f"this one reads {FORMAT_VERSION}). {'Upgrade rnn-onnx' if newer else 'Export the checkpoint again'}"
        )


def _checked(key: str, value: Any, hint: Any) -> Any:
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ValueError(f"{key}: {error}") from None
    return value


def _read_golden(text: str, spec: ModelSpec) -> GoldenSamples:
    try:
        content = base64.b64decode(text, validate=True)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_GOLDEN * (math.prod(spec.image_spec.shape) + 4 * len(spec.class_names) + 1):
            raise ValueError(f"golden samples: more than {_MAX_GOLDEN}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            golden = GoldenSamples(arrays["images"], arrays["logits"])
    except Exception as error:  # of a damaged archive, NumPy and zipfile raise anything
        raise ValueError(f"golden samples: {error}") from None
    samples = len(golden.images)
    if golden.images.dtype != np.uint8 or golden.images.shape != (samples, *spec.image_spec.shape) or not samples:
        raise ValueError("golden samples: the images don't fit the model")
    if golden.logits.dtype != np.float32 or golden.logits.shape != (samples, len(spec.class_names)):
        raise ValueError("golden samples: the logits don't fit the model")
    return golden
