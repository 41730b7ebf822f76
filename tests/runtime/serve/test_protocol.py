"""The Open Inference Protocol: what requests mean, and which are refused."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.model.spec import ImageSpec
from rnn_runtime.serve.protocol import InferRequest, RequestError, format_answer, parse_request

SPEC = ImageSpec(2, 3, 1)
MOST = 4
PIXELS = list(range(6))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=4),
    max_leaves=10,
)


def parse(request: Any, binary: bytes | None = None) -> InferRequest:
    header = json.dumps(request).encode()
    if binary is None:
        return parse_request(header, None, SPEC, MOST)
    return parse_request(header + binary, str(len(header)), SPEC, MOST)


def images(**changes: Any) -> dict[str, Any]:
    """A request with one image, or what it says instead."""
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 2, 3, 1], "data": PIXELS} | changes
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}


@pytest.mark.parametrize("data", [PIXELS, [[[[0], [1], [2]], [[3], [4], [5]]]], [[0, 1], [2, 3], [4, 5]]])
def test_pixels_come_flat_or_nested(data: Any) -> None:
    found = parse(images(data=data))

    assert found.images is not None
    assert found.images.dtype == np.uint8
    assert found.images.shape == (1, 2, 3, 1)
    assert found.images.ravel().tolist() == PIXELS
    assert found.outputs == {"logits": False, "probabilities": False}


@given(st.integers(1, MOST).flatmap(lambda count: st.binary(min_size=6 * count, max_size=6 * count)))
def test_binary_pixels_are_those_that_were_sent(data: bytes) -> None:
    shape = [len(data) // 6, 2, 3, 1]
    request = images(shape=shape, data=..., parameters={"binary_data_size": len(data)})

    found = parse(request | {"parameters": {"binary_data_output": True}}, data)

    assert found.images is not None
    assert (found.images.tobytes(), list(found.images.shape)) == (data, shape)
    assert found.outputs == {"logits": True, "probabilities": True}


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=MOST), st.booleans())
def test_encoded_images_come_as_base64_or_binary(files: list[bytes], binary: bool) -> None:
    tensor: dict[str, Any] = {"name": "encoded", "datatype": "BYTES", "shape": [len(files)]}
    if binary:
        data = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        found = parse({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}, data)
    else:
        found = parse({"inputs": [tensor | {"data": [base64.b64encode(file).decode() for file in files]}]})

    assert (found.images, found.encoded, found.count) == (None, tuple(files), len(files))


@pytest.mark.parametrize(
    ("request_", "problem", "status"),
    [
        ([], "the request doesn't follow the protocol: Expected `object`, got `array`", 400),
        ({}, "missing required field `inputs`", 400),
        ({"inputs": [1]}, r"Expected `object`, got `int` - at `\$.inputs\[0\]`", 400),
        ({"inputs": []}, "inputs must be one of 'images' and 'encoded', not none", 400),
        (images(name="image"), "one of 'images' and 'encoded', not 'image'", 400),
        (images(name=...), "missing required field `name`", 400),
        (images(datatype="FP32"), "must have the datatype UINT8, not 'FP32'", 400),
        (images(shape=[1, 3, 2, 1]), r"must have the shape \[batch, 2, 3, 1\], not \[1, 3, 2, 1\]", 400),
        (images(shape=[0, 2, 3, 1]), "must have the shape", 400),
        (images(shape=[-1, 2, 3, 1]), "must have the shape", 400),
        (images(shape=[True, 2, 3, 1]), "Expected `int`, got `bool`", 400),
        (images(shape="1"), "Expected `array`, got `str`", 400),
        (images(shape=[5, 2, 3, 1]), "at most 4 images in one request", 413),
        (images(shape=[10**30, 2, 3, 1]), "at most 4", 413),
        (images(data=...), "has 0 values, and its shape .* needs 6", 400),
        (images(data=[*PIXELS, 6]), "has 7 values, and its shape .* needs 6", 400),
        (images(data=[0, 1, 2, 3, 4, 256]), r"data of 'images' .*: Expected `int` <= 255 - at `\$\[5\]`", 400),
        (images(data=[0, 1, 2, 3, 4, -1]), "Expected `int` >= 0", 400),
        (images(data=[0, 1, 2, 3, 4, 0.5]), "Expected `int`, got `float`", 400),
        (images(data=["0", "1", "2", "3", "4", "5"]), "Expected `int`, got `str`", 400),
        (images(data=[10**30, 1, 2, 3, 4, 5]), "Expected `int` <= 255", 400),
        (
            images(parameters={"binary_data_size": 6}),
            "0 bytes follow the JSON, and binary_data_size of 'images' is 6",
            400,
        ),
        (images(parameters=[]), r"got `array` - at `\$.inputs\[0\].parameters`", 400),
        (images() | {"id": 5}, r"Expected `str \| null`, got `int` - at `\$.id`", 400),
        (images() | {"outputs": [{"name": "labels"}]}, "there is no output 'labels'", 400),
        (images() | {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "Expected `bool", 400),
        (images() | {"parameters": {"binary_data_output": "yes"}}, "Expected `bool`, got `str`", 400),
        (images() | {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, "classification", 400),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["*"]}]}, "Invalid base64", 400),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": "x"}]}, "Expected `array`", 400),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [2], "data": ["eA=="]}]}, "has 1 elements", 400),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1, 1], "data": []}]}, r"\[batch\]", 400),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_reason(request_: Any, problem: str, status: int) -> None:
    with pytest.raises(RequestError, match=problem) as refused:
        parse(request_)

    assert refused.value.status == status


@pytest.mark.parametrize(
    ("body", "length", "problem"),
    [
        (b"", None, "isn't JSON"),
        (b"\xff", None, "isn't JSON"),
        (b"[" * 100_000, None, "Expected `object`"),
        (b'{"id": ' + b"[" * 100_000, None, "Expected `str"),
        (b'{"other": ' + b"[" * 100_000, None, "isn't JSON: nested too deeply"),
        (b"{}", "3", "is 3, and the body has 2 bytes only"),
        (b"{}", "-1", "must be a number of bytes"),
        (b"{}", "9" * 30, "must be a number of bytes"),
    ],
)
def test_a_body_that_is_no_json_is_refused(body: bytes, length: str | None, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        parse_request(body, length, SPEC, MOST)


@pytest.mark.parametrize(
    ("shape", "data", "problem"),
    [
        ([1], b"\x05\x00\x00\x00abc", "ends within an element"),
        ([1], b"\x05\x00", "ends within an element"),
        ([2], b"\x01\x00\x00\x00a", "has 1 elements"),
        ([1], b"\x00\x00\x00\x00" * 3, "has 3 elements"),
    ],
)
def test_binary_elements_that_do_not_fit_are_refused(shape: list[int], data: bytes, problem: str) -> None:
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(data)}}

    with pytest.raises(RequestError, match=problem):
        parse({"inputs": [tensor]}, data)


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    with pytest.raises(RequestError, match="3 bytes follow the JSON, and binary_data_size of 'images' is None"):
        parse(images(), b"abc")


@given(json_values, st.binary(max_size=50))
def test_any_json_is_a_request_or_refused(value: Any, binary: bytes) -> None:
    for request in (value, {"inputs": value}, images(data=value), images(shape=value), images() | {"outputs": value}):
        try:
            found = parse(request, binary)
        except RequestError as error:
            problem = str(error)
        else:
            problem = ""
            assert found.count == 1
        assert problem or not binary
        assert problem.isprintable()


@given(st.binary(max_size=200), st.none() | st.text(max_size=5))
def test_any_body_is_refused_or_read(body: bytes, length: str | None) -> None:
    with pytest.raises(RequestError):
        parse_request(body, length, SPEC, MOST)


def test_an_answer_has_binary_tensors_in_the_order_of_its_outputs() -> None:
    values = {"logits": np.array([[1, 2]], np.float32), "probabilities": np.array([[0.25, 0.75]], np.float32)}
    request = InferRequest(None, (b"",), {"probabilities": True, "logits": False}, "seven")

    body, headers = format_answer("rnn", "1", request, values, ["a single color"])

    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:length]) == {
        "model_name": "rnn",
        "model_version": "1",
        "id": "seven",
        "parameters": {"unlike_images": 1},
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]},
        ],
    }
    assert body[length:] == np.array([0.25, 0.75], np.float32).tobytes()
