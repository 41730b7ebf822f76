"""The article's network in PyTorch, and the two ONNX files that `torch.onnx.export` makes of it."""

import io
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class ArticleNetwork(nn.Module):
    """Rows as steps, zero initial state, last step's output, one linear layer; float32 in."""

    def __init__(self, cell: str, input_size: int, hidden_size: int = 128, num_layers: int = 2, classes: int = 10):
        super().__init__()
        kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.rnn = kind(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1, :])  # type: ignore[no-any-return]


def export_legacy(model: nn.Module, example: Tensor) -> bytes:
    """The exporter that traces: the recurrent net becomes one operator."""
    file = io.BytesIO()
    axes = {"input": {0: "batch"}, "output": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            file,  # type: ignore[arg-type]  # which it takes, its documentation says
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes=axes,
        )
    return file.getvalue()


def export_dynamo(model: nn.Module, example: Tensor, folder: Path) -> bytes:
    """The newer exporter, which unrolls the recurrent net."""
    path = folder / "dynamo.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    return path.read_bytes()


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """A session as most programs open one."""
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits, or whatever the model's first output is."""
    return session.run(None, {session.get_inputs()[0].name: images})[0]  # type: ignore[no-any-return]
