"""onnxruntime as on a machine with a GPU, as far as a CPU can stand in for one. Used if this folder is on PYTHONPATH.

The real module is imported in its place. Sessions on CUDA are real sessions on the CPU, but they refuse what
onnxruntime refuses on CUDA, in its words: a second provider beside `session.disable_cpu_ep_fallback`, operators that
the environment variable NO_KERNEL names (`RNN,LSTM`), and graphs of models with loops. With NO_DEVICE=1, CUDA doesn't
start, and all nodes are left for the CPU. CAPTURE_FAILS=16 fails captures of so many rows or more. SESSIONS names a
file that gets a line of JSON per session: its provider's options.
"""

import json
import os
import sys
from pathlib import Path

sys.path.remove(os.path.dirname(__file__))
del sys.modules["onnxruntime"]

import onnxruntime  # noqa: E402

_CUDA = "CUDAExecutionProvider"
_real_session, _real_values, _providers = (
    onnxruntime.InferenceSession,
    onnxruntime.OrtValue,
    onnxruntime.get_available_providers(),
)


class _Session(_real_session):  # type: ignore[misc,valid-type]
    def __init__(self, model: bytes, options: object, providers: list, **_: object) -> None:  # type: ignore[type-arg]
        self._on_cuda = providers != ["CPUExecutionProvider"]
        self._captures = False
        if self._on_cuda:
            self._open_on_cuda(model, options, providers)
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads, plain.log_severity_level = 1, 4
        super().__init__(model, plain if self._on_cuda else options, providers=["CPUExecutionProvider"])

    def _open_on_cuda(self, model: bytes, options, providers: list) -> None:  # type: ignore[no-untyped-def,type-arg]
        ((name, settings),) = providers
        assert name == _CUDA
        if "NO_DEVICE" in os.environ:
            self._on_cuda = False
        operators = os.environ.get("NO_KERNEL", "").split(",")
        left_for_the_cpu = not self._on_cuda or any(operator and operator.encode() in model for operator in operators)
        try:
            may_use_the_cpu = options.get_session_config_entry("session.disable_cpu_ep_fallback") != "1"
        except RuntimeError:  # the option isn't set
            may_use_the_cpu = True
        assert left_for_the_cpu or not may_use_the_cpu
        if left_for_the_cpu and not may_use_the_cpu:
            raise RuntimeError(
                "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has "
                "been explicitly disabled by the user."
            )
        self._captures = settings["enable_cuda_graph"] == "1"
        if self._captures and b"Scan" in model:
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as the model has control "
                "flow nodes which can't be supported by CUDAExecutionProvider"
            )
        if file := os.environ.get("SESSIONS"):
            with Path(file).open("a") as lines:
                lines.write(json.dumps(settings) + "\n")

    def get_providers(self) -> list[str]:
        return [_CUDA, "CPUExecutionProvider"] if self._on_cuda else ["CPUExecutionProvider"]

    def run_with_iobinding(self, binding, options=None) -> None:  # type: ignore[no-untyped-def]
        assert self._captures
        rows = binding.get_outputs()[0].shape()[0]
        if rows >= int(os.environ.get("CAPTURE_FAILS", "1000000")):
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing ; GPU=0 ; file=x.cc")
        super().run_with_iobinding(binding, options)


class _Values(_real_values):  # type: ignore[misc,valid-type]
    @classmethod
    def ortvalue_from_shape_and_type(cls, shape, element_type, *_):  # type: ignore[no-untyped-def]
        return super().ortvalue_from_shape_and_type(shape, element_type)

    def numpy(self):  # type: ignore[no-untyped-def]
        return super().numpy().copy()  # as from a device


onnxruntime.InferenceSession, onnxruntime.OrtValue = _Session, _Values
onnxruntime.cuda_version = "13.0"
onnxruntime.preload_dlls = lambda: None
onnxruntime.get_available_providers = lambda: [_CUDA, *_providers]
