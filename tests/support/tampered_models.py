"""Model files that somebody changed after export."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from rnn_runtime.model.file import NO_SHA256, seal_model


def change_metadata(source: Path, target: Path, /, **texts: str | None) -> Path:
    """Copy a model with some of its metadata replaced, or left out where None."""
    proto = onnx.load(source)
    props = {prop.key: prop.value for prop in proto.metadata_props} | texts
    onnx.helper.set_model_props(proto, {key: text for key, text in props.items() if text is not None})
    target.write_bytes(seal_again(proto))
    return target


def change_weight(model: Path, target: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Copy a model with one of its weights changed."""
    proto = onnx.load(model)
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    values = change(numpy_helper.to_array(weight)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values, name))
    target.write_bytes(seal_again(proto))
    return target


def seal_again(proto: onnx.ModelProto) -> bytes:
    """The bytes of a model with the SHA-256 that they have now, as somebody who knows how would write them."""
    for prop in proto.metadata_props:
        if prop.key == "model_sha256":
            prop.value = NO_SHA256
            return seal_model(proto.SerializeToString())
    return bytes(proto.SerializeToString())
