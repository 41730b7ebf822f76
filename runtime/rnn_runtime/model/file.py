"""The file `model.onnx` as bytes: read within limits, and whole as `rnn-export` wrote it, or not used at all.

Nothing of a file reaches onnxruntime before its SHA-256 has been compared: a damaged model is told from a good one
for certain, and a parser that isn't made for damaged files never sees one.
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
UNSEALED = {"model_sha256": NO_SHA256}  # metadata that a model needs for `seal_model`

# How protobuf writes a text of the metadata: key and value, each with its length before it.
_SHA256 = re.compile(rb"\n\x0cmodel_sha256\x12\x40([0-9a-f]{64})")
_FORMAT_VERSION = re.compile(rb"\n\x0eformat_version\x12[\x01-\x20]([0-9]+)")
# A weight in another file is named by the key `location`. A number in protobuf may be written in more bytes than it
# needs, so this looks for all ways in which the key can be written.
_EXTERNAL_DATA = re.compile(rb"(?:\n|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")

_WHAT_IS_OURS = (
    "one has metadata of format 'rnn-onnx', an input images of uint8 (batch, height, width, channels), and outputs "
    "logits and probabilities of float32 (batch, classes); write one with: rnn-export model.pt model.onnx"
)


def read_model(path: str | Path) -> bytes:
    """Read a model file.

    Returns:
        Its content, which is what `rnn-export` wrote, to the last bit.

    Raises:
        ModelError: it is missing, too large, damaged, of another program or of another version of this one; the text
            doesn't name the file.
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
    """Check that the content of a model file is what `rnn-export` wrote.

    Raises:
        ModelError: as for `read_model`.
    """
    if data[:2] == b"PK":  # a ZIP archive, as torch.save writes
        raise ModelError("a checkpoint, it seems, and not a model; export it first: rnn-export model.pt model.onnx")
    version = _FORMAT_VERSION.search(data)
    if version:
        check_format_version(version[1].decode())
    if _EXTERNAL_DATA.search(data):
        raise ModelError("it keeps weights in other files, which are never read; a model is one file: export it again")
    found = _SHA256.search(data)
    if not found:
        raise ModelError(f"not a model that rnn-export wrote, or a damaged one: {_WHAT_IS_OURS}")
    if _sha256(data, found) != found[1]:
        raise ModelError(
            "damaged, or changed by another program: its SHA-256 is not the one that rnn-export stored in it; copy it "
            "again, or export it again"
        )


def seal_model(data: bytes) -> bytes:
    """Put its SHA-256 into a model file whose metadata has `UNSEALED` in its place.

    The SHA-256 is that of the file with 64 zeros where it stands.
    """
    found = _SHA256.search(data)
    if not found or found[1] != NO_SHA256.encode():
        raise ModelError("its metadata has no place for a SHA-256, or one already")
    return data[: found.start(1)] + _sha256(data, found) + data[found.end(1) :]


def _sha256(data: bytes, found: "re.Match[bytes]") -> bytes:
    digest = hashlib.sha256(memoryview(data)[: found.start(1)])
    digest.update(NO_SHA256.encode())
    digest.update(memoryview(data)[found.end(1) :])
    return digest.hexdigest().encode()
