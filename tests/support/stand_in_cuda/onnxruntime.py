"""onnxruntime with `tests.support.cuda`, for a process: used if this folder and the repository are on PYTHONPATH."""

import os
import sys

sys.path.remove(os.path.dirname(__file__))
del sys.modules["onnxruntime"]

import onnxruntime  # noqa: E402

from tests.support.cuda import build_for_cuda  # noqa: E402

vars(onnxruntime).update(build_for_cuda())
