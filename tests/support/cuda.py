"""onnxruntime as on a machine with a GPU, as far as a CPU can stand in for one.

Sessions on CUDA are real sessions on the CPU, but they refuse what onnxruntime refuses on CUDA, in its words: a second
provider beside `session.disable_cpu_ep_fallback`, and operators that the environment variable NO_KERNEL names
(`RNN,LSTM`). With NO_DEVICE=1, CUDA doesn't start, and all nodes are left for the CPU. With RUN_FAILS=text, each run on
CUDA fails so. SESSIONS names a file that gets a line of JSON per session: its provider's options.
"""

import json
import os
from pathlib import Path
from typing import Any

import onnxruntime

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_REAL = onnxruntime.InferenceSession


class _Session(_REAL):  # type: ignore[misc,valid-type]
    def __init__(self, model: bytes, options: Any, providers: list[Any], **_: object) -> None:
        self._on_cuda = providers != [_CPU]
        if self._on_cuda:
            self._open_on_cuda(model, options, providers)
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads, plain.log_severity_level = 1, 4
        super().__init__(model, plain if self._on_cuda else options, providers=[_CPU])

    def _open_on_cuda(self, model: bytes, options: Any, providers: list[Any]) -> None:
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
        if file := os.environ.get("SESSIONS"):
            with Path(file).open("a") as lines:
                lines.write(json.dumps(settings) + "\n")

    def get_providers(self) -> list[str]:
        return [_CUDA, _CPU] if self._on_cuda else [_CPU]

    def run(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        if self._on_cuda and "RUN_FAILS" in os.environ:
            raise RuntimeError(os.environ["RUN_FAILS"])
        return super().run(outputs, inputs, options)


def build_for_cuda() -> dict[str, object]:
    """The attributes in which onnxruntime's build for CUDA differs. No provider's library is beside it."""
    found = [provider for provider in onnxruntime.get_available_providers() if provider != _CUDA]
    return {
        "InferenceSession": _Session,
        "cuda_version": "13.0",
        "preload_dlls": lambda: None,
        "get_available_providers": lambda: [_CUDA, *found],
        "__file__": os.path.join(os.path.dirname(__file__), "onnxruntime", "__init__.py"),
    }
