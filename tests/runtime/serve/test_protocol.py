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
        ([], "must be a JSON object", 400),
        ({}, "inputs must be a list of objects", 400),
        ({"inputs": [1]}, "inputs must be a list of objects", 400),
        ({"inputs": []}, "inputs must be one of 'images' and 'encoded', not none", 400),
        (images(name="image"), "one of 'images' and 'encoded', not 'image'", 400),
        (images(name=...), "needs a name and a datatype", 400),
        (images(datatype="FP32"), "must have the datatype UINT8, not 'FP32'", 400),
        (images(shape=[1, 3, 2, 1]), r"must have the shape \[batch, 2, 3, 1\], not \[1, 3, 2, 1\]", 400),
        (images(shape=[0, 2, 3, 1]), "must have the shape", 400),
        (images(shape=[-1, 2, 3, 1]), "must have the shape", 400),
        (images(shape=[True, 2, 3, 1]), "list of whole numbers", 400),
        (images(shape="1"), "list of whole numbers", 400),
        (images(shape=[5, 2, 3, 1]), "5 images in one request, and at most 4", 413),
        (images(shape=[10**30, 2, 3, 1]), "at most 4", 413),
        (images(data=...), "must be 6 whole numbers from 0 to 255", 400),
        (images(data=[*PIXELS, 6]), "must be 6 whole numbers from 0 to 255", 400),
        (images(data=[0, 1, 2, 3, 4, 256]), "from 0 to 255", 400),
        (images(data=[0, 1, 2, 3, 4, -1]), "from 0 to 255", 400),
        (images(data=[0, 1, 2, 3, 4, 0.5]), "from 0 to 255", 400),
        (images(data=[[0, 1], [2, 3, 4, 5]]), "from 0 to 255", 400),
        (images(data=["0", "1", "2", "3", "4", "5"]), "from 0 to 255", 400),
        (images(data=[10**30, 1, 2, 3, 4, 5]), "from 0 to 255", 400),
        (images(parameters={"binary_data_size": 6}), "binary_data_size of 'images' is 6, and 0 bytes are left", 400),
        (images(parameters=[]), "parameters must be an object", 400),
        (images() | {"id": 5}, "id must be a text", 400),
        (images() | {"outputs": [{"name": "labels"}]}, "there is no output 'labels'", 400),
        (images() | {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "true or false", 400),
        (images() | {"parameters": {"binary_data_output": "yes"}}, "true or false", 400),
        (images() | {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, "classification", 400),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["*"]}]}, "isn't base64", 400),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": "x"}]}, "list of texts", 400),
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
        (b"[" * 100_000, None, "isn't JSON"),
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
        ([1], b"\x00\x00\x00\x00" * 3, "has 2 elements"),
    ],
)
def test_binary_elements_that_do_not_fit_are_refused(shape: list[int], data: bytes, problem: str) -> None:
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(data)}}

    with pytest.raises(RequestError, match=problem):
        parse({"inputs": [tensor]}, data)


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    with pytest.raises(RequestError, match="3 bytes follow the last tensor"):
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
        assert problem.isprintable() or "isn't JSON" in problem


@given(st.binary(max_size=200), st.none() | st.text(max_size=5))
def test_any_body_is_refused_or_read(body: bytes, length: str | None) -> None:
    with pytest.raises(RequestError):
        parse_request(body, length, SPEC, MOST)


def test_an_answer_has_binary_tensors_in_the_order_of_its_outputs() -> None:
    values = {"logits": np.array([[1, 2]], np.float32), "probabilities": np.array([[0.25, 0.75]], np.float32)}
    request = InferRequest(None, (b"",), {"probabilities": True, "logits": False}, "seven")

    body, headers = format_answer("rnn", "1", request, values)

    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:length]) == {
        "model_name": "rnn",
        "model_version": "1",
        "id": "seven",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]},
        ],
    }
    assert body[length:] == np.array([0.25, 0.75], np.float32).tobytes()
