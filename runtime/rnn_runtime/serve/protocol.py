"""Version 2 of the Open Inference Protocol: requests and answers in JSON, with or without binary tensors.

The protocol is that of github.com/kserve/open-inference-protocol, and binary tensors that of Triton
(github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md).
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.model.spec import ImageSpec

OUTPUTS = ("logits", "probabilities")
BINARY_HEADER = "Inference-Header-Content-Length"  # the length of the JSON before binary tensors
EXTENSIONS = ("binary_tensor_data",)


class RequestError(Exception):
    """A request that can't be answered; the text says why, and `status` is the HTTP status."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a request asks for.

    Attributes:
        images: uint8 `(batch, height, width, channels)`; None if they are encoded.
        encoded: The bytes of image files; empty if they are pixels.
        outputs: The names of the outputs, and whether each is to be binary.
        id: The request's own name, for the answer.
    """

    images: NDArray[np.uint8] | None
    encoded: tuple[bytes, ...]
    outputs: Mapping[str, bool]
    id: str | None = None

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.encoded) if self.images is None else len(self.images)


@dataclass(slots=True)
class _Tensor:
    """An input as it is in the request."""

    name: str
    datatype: str
    shape: list[int]
    data: Any = None  # values, in JSON
    binary: bytes | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def parse_request(body: bytes, json_length: str | None, spec: ImageSpec, most_images: int) -> InferRequest:
    """Read a request for inference.

    Args:
        body: The request's body.
        json_length: The header `Inference-Header-Content-Length`; None if all of the body is JSON.
        spec: The size and channels of the model's images.
        most_images: The most images that a request may have.

    Raises:
        RequestError: the request doesn't follow the protocol, or doesn't fit the model.
    """
    header, rest = _split(body, json_length)
    request = _parse_json(header)
    tensors = [_parse_tensor(value) for value in _list(request, "inputs")]
    rest = _give_binary(tensors, rest)
    if rest:
        raise RequestError(f"{len(rest)} bytes follow the last tensor. Set binary_data_size of each binary input")
    if len(tensors) != 1 or tensors[0].name not in ("images", "encoded"):
        names = ", ".join(repr(tensor.name) for tensor in tensors) or "none"
        raise RequestError(f"inputs must be one of 'images' and 'encoded', not {names}")
    (tensor,) = tensors
    _check_shape(tensor, spec, most_images)
    identity = request.get("id")
    if not isinstance(identity, str | None):
        raise RequestError("id must be a text")
    outputs = _parse_outputs(request)
    if tensor.name == "images":
        return InferRequest(_read_pixels(tensor), (), outputs, identity)
    return InferRequest(None, _read_encoded(tensor), outputs, identity)


def format_answer(
    model: str, version: str, request: InferRequest, values: Mapping[str, NDArray[np.float32]]
) -> tuple[bytes, dict[str, str]]:
    """An answer's body and headers."""
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for name, binary in request.outputs.items():
        value = values[name]
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(value.shape)}
        if binary:
            tensors.append(value.astype("<f4", copy=False).tobytes())
            output["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            output["data"] = value.ravel().tolist()
        outputs.append(output)
    answer = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer).encode()
    if not tensors:
        return header, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", BINARY_HEADER: str(len(header))}
    return b"".join([header, *tensors]), headers


def describe_model(name: str, version: str, spec: ImageSpec, classes: int) -> dict[str, Any]:
    """The model's metadata."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": [-1, *spec.shape]},
            {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, classes]} for name in OUTPUTS],
    }


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    if json_length is None:
        return body, b""
    if not (json_length.isascii() and json_length.isdecimal() and len(json_length) < 20):
        raise RequestError(f"{BINARY_HEADER} must be a number of bytes, not {json_length[:40]!r}")
    length = int(json_length)
    if length > len(body):
        raise RequestError(f"{BINARY_HEADER} is {length}, and the body has {len(body)} bytes only")
    return body[:length], body[length:]


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RequestError(f"the request isn't JSON: {reason}") from None
    if not isinstance(request, dict):
        raise RequestError("the request must be a JSON object")
    return request


def _list(request: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    values = request.get(key)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise RequestError(f"{key} must be a list of objects")
    return values


def _parameters(value: Mapping[str, Any]) -> dict[str, Any]:
    parameters = value.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("parameters must be an object")
    return parameters


def _parse_tensor(value: Mapping[str, Any]) -> _Tensor:
    name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise RequestError("an input needs a name and a datatype")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise RequestError(f"the shape of {name!r} must be a list of whole numbers")
    return _Tensor(name, datatype, shape, value.get("data"), parameters=_parameters(value))


def _give_binary(tensors: Sequence[_Tensor], rest: bytes) -> bytes:
    """Give each binary tensor its bytes, and return what is left."""
    for tensor in tensors:
        if "binary_data_size" not in tensor.parameters:
            continue
        size = tensor.parameters["binary_data_size"]
        if type(size) is not int or not 0 <= size <= len(rest):
            raise RequestError(f"binary_data_size of {tensor.name!r} is {size!r}, and {len(rest)} bytes are left")
        if tensor.data is not None:
            raise RequestError(f"{tensor.name!r} has both data and binary_data_size")
        tensor.binary, rest = rest[:size], rest[size:]
    return rest


def _check_shape(tensor: _Tensor, spec: ImageSpec, most_images: int) -> None:
    datatype, shape = ("UINT8", spec.shape) if tensor.name == "images" else ("BYTES", ())
    expected = ", ".join(["batch", *map(str, shape)])
    if tensor.datatype != datatype:
        raise RequestError(f"{tensor.name!r} must have the datatype {datatype}, not {tensor.datatype!r}")
    if len(tensor.shape) != 1 + len(shape) or tuple(tensor.shape[1:]) != shape or tensor.shape[0] < 1:
        raise RequestError(f"{tensor.name!r} must have the shape [{expected}], not {tensor.shape}")
    if tensor.shape[0] > most_images:
        raise RequestError(f"{tensor.shape[0]} images in one request, and at most {most_images} are allowed", 413)


def _read_pixels(tensor: _Tensor) -> NDArray[np.uint8]:
    size = int(np.prod(tensor.shape))
    if tensor.binary is not None:
        if len(tensor.binary) != size:
            raise RequestError(f"'images' has {len(tensor.binary)} bytes, and its shape {tensor.shape} needs {size}")
        return np.frombuffer(tensor.binary, np.uint8).reshape(tensor.shape)
    try:
        values = np.asarray(tensor.data)
    except (ValueError, OverflowError):  # lists of different lengths
        values = np.empty(0)
    if values.size != size or values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise RequestError(f"data of 'images' must be {size} whole numbers from 0 to 255, for the shape {tensor.shape}")
    return values.astype(np.uint8).reshape(tensor.shape)


def _read_encoded(tensor: _Tensor) -> tuple[bytes, ...]:
    count = tensor.shape[0]
    if tensor.binary is not None:
        found = tuple(_split_bytes(tensor.binary, count))
    else:
        if not isinstance(tensor.data, list) or not all(isinstance(text, str) for text in tensor.data):
            raise RequestError(
                "data of 'encoded' must be a list of texts, with the bytes of an image file in base64 each"
            )
        try:
            found = tuple(base64.b64decode(text, validate=True) for text in tensor.data)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"data of 'encoded' isn't base64: {error}") from None
    if len(found) != count:
        raise RequestError(f"'encoded' has {len(found)} elements, and its shape {tensor.shape} needs {count}")
    return found


def _split_bytes(data: bytes, most: int) -> list[bytes]:
    """The elements of a binary tensor of bytes: each is preceded by its length in 4 bytes, the lowest first."""
    found: list[bytes] = []
    position = 0
    while position < len(data) and len(found) <= most:
        length = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if length > len(data) - position:
            raise RequestError("'encoded' ends within an element")
        found.append(data[position : position + length])
        position += length
    return found


def _parse_outputs(request: Mapping[str, Any]) -> dict[str, bool]:
    usual = _parameters(request).get("binary_data_output", False)
    if "outputs" not in request:
        return dict.fromkeys(OUTPUTS, _flag(usual, "binary_data_output"))
    outputs: dict[str, bool] = {}
    for value in _list(request, "outputs"):
        name, parameters = value.get("name"), _parameters(value)
        if name not in OUTPUTS:
            raise RequestError(f"there is no output {name!r}. The model has {' and '.join(OUTPUTS)}")
        if "classification" in parameters:
            raise RequestError("classification isn't supported. Ask for probabilities")
        outputs[name] = _flag(parameters.get("binary_data", usual), "binary_data")
    return outputs or dict.fromkeys(OUTPUTS, _flag(usual, "binary_data_output"))


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false")
    return value
