"""The file `model.onnx` as bytes: read within limits, and used only if it is exactly what `rnn-export` wrote.

The SHA-256 is compared before onnxruntime sees any of the file. So damage is always found, and a parser that isn't made
for damaged files never sees one.
"""

import hashlib
import os
import re
import stat
from pathlib import Path

from rnn_runtime.errors import ModelError
from rnn_runtime.model.metadata import check_format_version

MAX_MODEL_BYTES = 1 << 30
NO_SHA256 = "0" * 64
UNSEALED = {"model_sha256": NO_SHA256}  # metadata that `seal_model` needs in a model

# An entry of the metadata in protobuf: key and value, each preceded by its length.
_SHA256 = re.compile(rb"\n\x0cmodel_sha256\x12\x40([0-9a-f]{64})")
_FORMAT_VERSION = re.compile(rb"\n\x0eformat_version\x12[\x01-\x20]([0-9]+)")
# The key `location` names another file that holds a weight. Protobuf allows longer encodings of a number than needed,
# so this matches all encodings of the key.
_EXTERNAL_DATA = re.compile(rb"(?:\n|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")

_WHAT_IS_OURS = (
    "such a model has metadata of format 'rnn-onnx', the input images of uint8 (batch, height, width, channels), and "
    "the outputs logits and probabilities of float32 (batch, classes). Write one with: rnn-export model.pt model.onnx"
)


def read_model(path: str | Path) -> bytes:
    """Read a model file.

    Returns:
        Its content, exactly as `rnn-export` wrote it.

    Raises:
        ModelError: the file is missing, too large, damaged, or written by another program or another version of this
            one. The text doesn't name the file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ModelError("not a regular file")
        if status.st_size > MAX_MODEL_BYTES:
            raise ModelError(f"the file has {status.st_size:,} bytes; a model has at most {MAX_MODEL_BYTES:,}")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise ModelError(f"{reason}. Write a model with: rnn-export model.pt model.onnx") from None
    check_model(data)
    return data


def check_model(data: bytes) -> None:
    """Check that the content of a model file is exactly what `rnn-export` wrote.

    Raises:
        ModelError: as for `read_model`.
    """
    if data[:2] == b"PK":  # a ZIP archive, as torch.save writes
        raise ModelError("a checkpoint, not a model. Export it first: rnn-export model.pt model.onnx")
    version = _FORMAT_VERSION.search(data)
    if version:
        check_format_version(version[1].decode())
    if _EXTERNAL_DATA.search(data):
        raise ModelError("its weights are in other files, which are never read. Export it again, as a single file")
    found = _SHA256.search(data)
    if not found:
        raise ModelError(f"not a model that rnn-export wrote, or a damaged one: {_WHAT_IS_OURS}")
    if _sha256(data, found) != found[1]:
        raise ModelError(
            "damaged, or changed by another program: its SHA-256 differs from the one that rnn-export stored in it. "
            "Copy or export it again"
        )


def stored_sha256(data: bytes) -> str:
    """The SHA-256 in a model file that `check_model` has passed, in hexadecimal. Equal files have equal ones."""
    found = _SHA256.search(data)
    return found[1].decode() if found else NO_SHA256


def seal_model(data: bytes) -> bytes:
    """Store the SHA-256 in a model file, in place of `UNSEALED` in its metadata.

    It is the SHA-256 of the file with 64 zeros in that place.
    """
    found = _SHA256.search(data)
    if not found or found[1] != NO_SHA256.encode():
        raise ModelError("its metadata has no place for a SHA-256, or already holds one")
    return data[: found.start(1)] + _sha256(data, found) + data[found.end(1) :]


def _sha256(data: bytes, found: "re.Match[bytes]") -> bytes:
    digest = hashlib.sha256(memoryview(data)[: found.start(1)])
    digest.update(NO_SHA256.encode())
    digest.update(memoryview(data)[found.end(1) :])
    return digest.hexdigest().encode()
