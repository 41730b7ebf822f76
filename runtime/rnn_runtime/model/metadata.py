"""The metadata of a model file, stored as onnx `metadata_props`. docs/reference/model-file.md lists the keys.

The SHA-256 among them is that of the file's bytes: `rnn_runtime.model.file` stores and compares it.
"""

import base64
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import ModelError, SettingsError
from rnn_runtime.model.spec import ModelSpec, with_full_depth

FORMAT_VERSION = 4
_OLDEST_VERSION = 2  # 1 had no SHA-256 of the file, 2 no temperature, 2 and 3 no depth range
_MAX_GOLDEN = 1024  # samples


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
            ModelError: it is missing, of a newer format, or damaged; the text doesn't name the file.
        """
        if props.get("format") != "rnn-onnx":
            raise ModelError("not a model that rnn-export wrote: its metadata has no format 'rnn-onnx'")
        check_format_version(props.get("format_version", ""))
        try:
            model = json.loads(props["model"])
            if props["format_version"] != str(FORMAT_VERSION):
                model = with_full_depth(model)
            spec = ModelSpec.from_dict(model)
            plain = {name: _json_object(props[name]) for name in ("metrics", "export", "parity")}
            _check_tolerances(plain["parity"])
            golden = _read_golden(props["golden_samples"], spec)
            if not re.fullmatch("[0-9a-f]{64}", props["checkpoint_sha256"]):
                raise ValueError("checkpoint_sha256 is no SHA-256 in hexadecimal")
            temperature = None if props["format_version"] == str(_OLDEST_VERSION) else json.loads(props["temperature"])
            _check_temperature(temperature)
            return cls(spec, golden, props["checkpoint_sha256"], **plain, temperature=temperature)
        except KeyError as error:
            raise ModelError(f"its metadata lacks {error}; export it again") from None
        except (SettingsError, ValueError, RecursionError) as error:
            raise ModelError(f"its metadata is damaged: {error}") from None


def exported_precision(props: Mapping[str, str]) -> str | None:
    """The precision that a model was exported with: `fp32`, `fp16` or `int8`. None if its metadata doesn't say."""
    try:
        precision = _json_object(props["export"]).get("precision")
    except (KeyError, ValueError, RecursionError):
        return None
    return precision if isinstance(precision, str) else None


def check_format_version(version: str) -> None:
    """Check that this program reads metadata of a version.

    Raises:
        ModelError: it reads another one only; the text doesn't name the file.
    """
    if version not in map(str, range(_OLDEST_VERSION, FORMAT_VERSION + 1)):
        newer = version.isdecimal() and int(version) > FORMAT_VERSION
        remedy = "Upgrade rnn-onnx" if newer else "Export the checkpoint again"
        raise ModelError(
            f"a model of {'a newer' if newer else 'an older'} rnn-onnx (format version {version!r}; this one reads "
            f"{_OLDEST_VERSION} to {FORMAT_VERSION}). {remedy}"
        )


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, not {type(value).__name__}")
    return value


def _check_tolerances(parity: Mapping[str, Any]) -> None:
    for name in ("atol", "rtol"):
        value = parity.get(name, 0.0)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f"parity: {name} must be a number from 0 up, not {value!r}")


def _check_temperature(value: object) -> None:
    if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):  # type: ignore[operator]
        raise ValueError(f"the temperature must be a number above 0, not {value!r}")


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
