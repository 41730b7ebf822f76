"""Version 2 of the Open Inference Protocol: requests and answers in JSON, with or without binary tensors.

The protocol is that of github.com/kserve/open-inference-protocol, and binary tensors that of Triton
(github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rnn_runtime.model.spec import ImageSpec
from rnn_runtime.text import printable

OUTPUTS = ("logits", "probabilities")
BINARY_HEADER = "Inference-Header-Content-Length"  # the length of the JSON before binary tensors
EXTENSIONS = ("binary_tensor_data",)
_LONGEST_ECHO = 100  # characters of a request that an error repeats
_NOTHING = msgspec.Raw(b"[]")
_T = TypeVar("_T")


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


class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None  # None: the data is in the JSON


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = _NOTHING
    parameters: _InputParameters = msgspec.field(default_factory=_InputParameters)


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None  # None: as the request's `binary_data_output`
    classification: int | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters = msgspec.field(default_factory=_OutputParameters)


class _RequestParameters(msgspec.Struct):
    binary_data_output: bool = False


class _Request(msgspec.Struct):
    """The JSON of a request, as far as it is looked at."""

    inputs: list[_Input]
    outputs: list[_Output] = []
    id: str | None = None
    parameters: _RequestParameters = msgspec.field(default_factory=_RequestParameters)


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
    header, binary = _split(body, json_length)
    request = _decode(header, _Request, "the request")
    if len(request.inputs) != 1 or request.inputs[0].name not in ("images", "encoded"):
        names = " and ".join(_echo(tensor.name) for tensor in request.inputs[:3]) or "none"
        raise RequestError(f"inputs must be one of 'images' and 'encoded', not {names}")
    (tensor,) = request.inputs
    _check_shape(tensor, spec, most_images)
    size = tensor.parameters.binary_data_size
    if len(binary) != (size or 0):
        raise RequestError(f"{len(binary)} bytes follow the JSON, and binary_data_size of {tensor.name!r} is {size}")
    if size is not None and tensor.data is not _NOTHING:
        raise RequestError(f"{tensor.name!r} has both data and binary_data_size")
    outputs = _read_outputs(request)
    if tensor.name == "images":
        pixels = _read_pixels(tensor) if size is None else binary
        return InferRequest(_shaped(pixels, tensor.shape), (), outputs, request.id)
    encoded = _decode(tensor.data, list[bytes], "data of 'encoded'") if size is None else _split_elements(binary)
    if len(encoded) != tensor.shape[0]:
        raise RequestError(
            f"'encoded' has {len(encoded)} elements, and its shape {tensor.shape} needs {tensor.shape[0]}"
        )
    return InferRequest(None, tuple(encoded), outputs, request.id)


def format_answer(
    model: str,
    version: str,
    request: InferRequest,
    values: Mapping[str, NDArray[np.float32]],
    unlike: Sequence[str | None],
) -> tuple[bytes, dict[str, str]]:
    """An answer's body and headers. `unlike` is in what each image is unlike the training images."""
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
    # The protocol's parameters are numbers, texts or booleans, so there is no list of them.
    parameters = {"unlike_images": sum(difference is not None for difference in unlike)}
    answer = {"model_name": model, "model_version": version, "parameters": parameters, "outputs": outputs}
    if request.id is not None:
        answer["id"] = request.id
    header = msgspec.json.encode(answer)
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
        raise RequestError(f"{BINARY_HEADER} must be a number of bytes, not {_echo(json_length)}")
    length = int(json_length)
    if length > len(body):
        raise RequestError(f"{BINARY_HEADER} is {length}, and the body has {len(body)} bytes only")
    return body[:length], body[length:]


def _decode(text: bytes | msgspec.Raw, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"{what} doesn't follow the protocol: {printable(str(error))}") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"{what} isn't JSON: {printable(str(error))}") from None
    except RecursionError:
        raise RequestError(f"{what} isn't JSON: nested too deeply") from None


def _echo(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}...")


def _check_shape(tensor: _Input, spec: ImageSpec, most_images: int) -> None:
    datatype, shape = ("UINT8", spec.shape) if tensor.name == "images" else ("BYTES", ())
    if tensor.datatype != datatype:
        raise RequestError(f"{tensor.name!r} must have the datatype {datatype}, not {_echo(tensor.datatype)}")
    if len(tensor.shape) != 1 + len(shape) or tuple(tensor.shape[1:]) != shape or tensor.shape[0] < 1:
        expected = ", ".join(["batch", *map(str, shape)])
        raise RequestError(
            f"{tensor.name!r} must have the shape [{expected}], not {_echo(str(tensor.shape[:9]))[1:-1]}"
        )
    if tensor.shape[0] > most_images:
        raise RequestError(f"there may be at most {most_images} images in one request", 413)


def _read_pixels(tensor: _Input) -> bytes:
    # Flat or nested in any way: brackets within the list don't change which numbers follow each other.
    numbers = b"[" + bytes(tensor.data).translate(None, b"[] \t\r\n") + b"]"
    return bytes(_decode(numbers, list[Annotated[int, msgspec.Meta(ge=0, le=255)]], "data of 'images'"))


def _shaped(pixels: bytes, shape: list[int]) -> NDArray[np.uint8]:
    if len(pixels) != math.prod(shape):
        raise RequestError(f"'images' has {len(pixels)} values, and its shape {shape} needs {math.prod(shape)}")
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _split_elements(data: bytes) -> list[bytes]:
    """The elements of a binary tensor of bytes: each is preceded by its length in 4 bytes, the lowest first."""
    found: list[bytes] = []
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if length > len(data) - position:
            raise RequestError("'encoded' ends within an element")
        found.append(data[position : position + length])
        position += length
    return found


def _read_outputs(request: _Request) -> dict[str, bool]:
    usual = request.parameters.binary_data_output
    outputs: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise RequestError(f"there is no output {_echo(output.name)}. The model has {' and '.join(OUTPUTS)}")
        if output.parameters.classification is not None:
            raise RequestError("classification isn't supported. Ask for probabilities")
        binary = output.parameters.binary_data
        outputs[output.name] = usual if binary is None else binary
    return outputs or dict.fromkeys(OUTPUTS, usual)
