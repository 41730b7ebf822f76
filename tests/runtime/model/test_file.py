"""The file `model.onnx`: whole and ours, or refused before anything else looks at it."""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper

from rnn_runtime import Classifier
from rnn_runtime.errors import ModelError
from rnn_runtime.model.file import MAX_MODEL_BYTES, NO_SHA256, check_model, read_model, seal_model
from tests.support.commands import Run
from tests.support.tampered_models import change_metadata, seal_again


def test_a_models_sha256_is_that_of_its_file_with_zeros_there(digits_model: Path) -> None:
    data = digits_model.read_bytes()
    (sha256,) = (prop.value for prop in onnx.load(digits_model).metadata_props if prop.key == "model_sha256")

    assert hashlib.sha256(data.replace(sha256.encode(), b"0" * 64)).hexdigest() == sha256
    assert read_model(digits_model) == data


@given(data=st.data())
def test_a_bit_that_flipped_anywhere_is_told(digits_model: Path, data: st.DataObject) -> None:
    content = bytearray(digits_model.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(ModelError):
        check_model(bytes(content))


@given(data=st.data())
def test_mutated_models_are_refused(digits_model: Path, data: st.DataObject) -> None:
    content = digits_model.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    mutated = content[:start] + data.draw(st.binary(max_size=50)) + content[end:]

    if mutated != content:
        with pytest.raises(ModelError):
            check_model(mutated)


@given(content=st.binary())
def test_random_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ModelError):
        check_model(content)


def test_a_model_that_was_changed_by_another_program_is_refused(tmp_path: Path, digits_model: Path) -> None:
    proto = onnx.load(digits_model)
    proto.graph.node[0].name = "renamed"
    onnx.save(proto, tmp_path / "model.onnx")

    with pytest.raises(ModelError, match=r"model\.onnx: damaged, or changed by another program"):
        Classifier(tmp_path / "model.onnx", provider="cpu")


@pytest.mark.parametrize("version", ["1", "4", "99"])
def test_models_of_other_versions_say_which(tmp_path: Path, digits_model: Path, version: str) -> None:
    change_metadata(digits_model, tmp_path / "model.onnx", format_version=version)

    with pytest.raises(ModelError, match=f"format version '{version}'; this one reads 7"):
        Classifier(tmp_path / "model.onnx", provider="cpu")


def test_models_of_other_programs_are_told_what_was_expected(tmp_path: Path, run: Run) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "model.onnx")

    result = run("rnn-infer", "--provider", "cpu", "a.png")

    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(
        r"Error: model\.onnx: not a model that rnn-export wrote, or a damaged one: such a model has metadata of format "
        r"'rnn-onnx', the input images of uint8 \(batch, height, width, channels\), and the outputs .*\n",
        result.stderr,
    )


def outside(tensor: TensorProto, location: str) -> None:
    """Have a tensor's values in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


def with_external_data(model: Path, location: str) -> onnx.ModelProto:
    """A model whose linear layer has its bias in another file."""
    proto = onnx.load(model)
    (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name == "linear.bias")
    outside(bias, location)
    return proto


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_weights_in_other_files_are_refused_in_a_sealed_model(
    tmp_path: Path, digits_model: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    # Of a model that it is given as bytes, onnxruntime itself reads such files from the current folder.
    monkeypatch.chdir(tmp_path)
    np.zeros(10, np.float32).tofile("weights.bin")
    Path("model.onnx").write_bytes(seal_again(with_external_data(digits_model, location)))

    with pytest.raises(ModelError, match="weights are in other files"):
        Classifier("model.onnx", provider="cpu")


def attribute(node: onnx.NodeProto, kind: AttributeProto.AttributeType) -> AttributeProto:
    added: AttributeProto = node.attribute.add(name="value", type=kind)
    return added


# Where a model can hold a tensor, besides its weights.
PLACES: dict[str, Callable[[onnx.ModelProto], TensorProto]] = {
    "attribute": lambda model: attribute(model.graph.node[0], AttributeProto.TENSOR).t,
    "attribute of several": lambda model: attribute(model.graph.node[0], AttributeProto.TENSORS).tensors.add(),
    "sparse attribute": lambda model: attribute(model.graph.node[0], AttributeProto.SPARSE_TENSOR).sparse_tensor.values,
    "subgraph": lambda model: attribute(model.graph.node[0], AttributeProto.GRAPH).g.initializer.add(),
    "several subgraphs": lambda model: (
        attribute(model.graph.node[0], AttributeProto.GRAPHS).graphs.add().initializer.add()
    ),
    "function": lambda model: attribute(model.functions.add().node.add(), AttributeProto.TENSOR).t,
    "sparse weight": lambda model: model.graph.sparse_initializer.add().indices,
    "training": lambda model: model.training_info.add().initialization.initializer.add(),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_place_of_a_sealed_model_can_name_another_file(digits_model: Path, place: str) -> None:
    proto = onnx.load(digits_model)
    outside(PLACES[place](proto), "/etc/passwd")

    with pytest.raises(ModelError, match=r"weights are in other files|whose models hold no such thing"):
        check_model(seal_again(proto))


def longer(tag: bytes) -> Iterator[bytes]:
    """Other encodings that C++ protobuf takes for a tag: it drops the bits above 32."""
    number = tag[0] | 0x80
    for zeros in range(4):
        yield bytes([number, *[0x80] * zeros, 0])
    for high in (0x10, 0x20, 0x70):
        yield bytes([number, 0x80, 0x80, 0x80, high])


@pytest.mark.parametrize("encoding", [*longer(b"\x6a")], ids=bytes.hex)
def test_a_tag_in_another_encoding_is_refused(digits_model: Path, encoding: bytes) -> None:
    # The tensor begins with the field 13, external_data.
    entry = onnx.StringStringEntryProto(key="location", value="/etc/passwd").SerializeToString()
    tensor = encoding + bytes([len(entry)]) + entry + TensorProto(data_location="EXTERNAL").SerializeToString()
    graph = b"\x2a" + bytes([len(tensor)]) + tensor  # initializer
    data = digits_model.read_bytes() + b"\x3a" + bytes([len(graph)]) + graph  # parsers merge a second graph

    with pytest.raises(ModelError, match="no such thing"):
        check_model(sealed(data))


def sealed(data: bytes) -> bytes:
    """A model whose SHA-256 is made to fit its bytes."""
    return seal_model(re.sub(rb"(?<=model_sha256\x12\x40)[0-9a-f]{64}", NO_SHA256.encode(), data))


@given(data=st.data())
def test_a_mutated_and_sealed_model_names_no_other_file_or_is_refused(digits_model: Path, data: st.DataObject) -> None:
    content = bytearray(seal_again(with_external_data(digits_model, "/etc/passwd")))
    tensor = content.index(b"linear.bias", content.index(b"/etc/passwd") - 100)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(tensor - 40, tensor + 80))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=6))
    try:
        check_model(sealed(bytes(content)))
    except ModelError:
        return
    weights = onnx.load(io.BytesIO(content)).graph.initializer
    assert not any(weight.external_data or weight.data_location for weight in weights)


def test_a_model_in_the_format_of_onnxruntime_is_refused_by_name(digits_model: Path) -> None:
    content = digits_model.read_bytes()

    with pytest.raises(ModelError, match=r"onnxruntime's own format \(ORT\)"):
        check_model(content[:4] + b"ORTM" + content[8:])


@pytest.mark.parametrize("name", [b"images", b"logits", b"format_version"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, digits_model: Path, name: bytes) -> None:
    data = digits_model.read_bytes().replace(name, b"\xff" + name[1:])
    (tmp_path / "model.onnx").write_bytes(sealed(data))

    with pytest.raises(ModelError, match="a name that isn't UTF-8"):
        Classifier(tmp_path / "model.onnx", provider="cpu")


def test_a_class_may_be_called_location(tmp_path: Path, digits_model: Path) -> None:
    (text,) = (prop.value for prop in onnx.load(digits_model).metadata_props if prop.key == "model")
    change_metadata(digits_model, tmp_path / "model.onnx", model=text.replace('"0"', '"location"'))

    assert Classifier(tmp_path / "model.onnx", provider="cpu").class_names[0] == "location"


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        os.truncate(file.fileno(), MAX_MODEL_BYTES + 1)  # takes no space on the disk

    with pytest.raises(ModelError, match="1,073,741,825 bytes; a model has at most 1,073,741,824"):
        read_model(tmp_path / "model.onnx")


def test_a_named_pipe_or_folder_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")

    with pytest.raises(ModelError, match="not a regular file"):
        read_model(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        read_model(tmp_path)
