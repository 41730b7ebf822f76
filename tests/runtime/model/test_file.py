"""The file `model.onnx`: whole and ours, or refused before anything else looks at it."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from rnn_runtime import Classifier
from rnn_runtime.errors import ModelError
from rnn_runtime.model.file import MAX_MODEL_BYTES, check_model, read_model
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


def with_external_data(model: Path, location: str) -> bytes:
    """A model whose linear layer has its bias in another file."""
    proto = onnx.load(model)
    (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name == "linear.bias")
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    entry = bias.external_data.add()
    entry.key, entry.value = "location", location
    return seal_again(proto)


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_weights_in_other_files_are_refused_in_a_sealed_model(
    tmp_path: Path, digits_model: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    # Of a model that it is given as bytes, onnxruntime itself reads such files from the current folder.
    monkeypatch.chdir(tmp_path)
    np.zeros(10, np.float32).tofile("weights.bin")
    Path("model.onnx").write_bytes(with_external_data(digits_model, location))

    with pytest.raises(ModelError, match="weights are in other files"):
        Classifier("model.onnx", provider="cpu")


@pytest.mark.parametrize(
    "key",
    [b"\x0a\x08location", b"\x0a\x88\x00location", b"\x8a\x00\x08location", b"\x8a\x80\x00\x88\x80\x80\x00location"],
)
def test_every_encoding_of_the_key_of_external_data_is_seen(key: bytes) -> None:
    with pytest.raises(ModelError, match="weights are in other files"):
        check_model(b"\x08\x08" + key)
    parsed = onnx.StringStringEntryProto.FromString(key)
    assert parsed.key == "location"


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
