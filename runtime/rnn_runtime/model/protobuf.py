"""A strict reader of ONNX's encoding: it lets through only the fields that `rnn-export` writes.

onnxruntime reads files that a model names, and its parser takes many encodings for the same thing. So this doesn't look
for what is forbidden: it refuses all that isn't known. What passes can be read in one way only. Fields have the numbers
and types of onnx/onnx.proto3; the encoding is described at protobuf.dev/programming-guides/encoding.
"""

from typing import Any

from rnn_runtime.errors import ModelError

_VARINT, _BYTES, _FLOAT = 0, 2, 5  # wire types
_LONGEST_VARINT = 10  # bytes
_DEEPEST = 12  # messages within messages; a graph in a node, with its shapes, takes nine
_TEXT = "text"  # in UTF-8: onnxruntime's functions for Python raise for other names
_SKIPPED = "skipped"

_Fields = dict[int, Any]


def _message(*, numbers: str = "", texts: str = "", raw: str = "", **messages: tuple[int, _Fields]) -> _Fields:
    """What a message may hold, by the tag of each field; `numbers`, `texts` and `raw` list fields of these kinds."""
    fields: _Fields = {int(number) << 3 | _VARINT: _SKIPPED for number in numbers.split()}
    fields |= {int(number) << 3 | _BYTES: _TEXT for number in texts.split()}
    fields |= {int(number) << 3 | _BYTES: _SKIPPED for number in raw.split()}
    return fields | {number << 3 | _BYTES: fields_of for number, fields_of in messages.values()}


_ENTRY = _message(texts="1 2")
_DIMENSION = _message(numbers="1", texts="2")
_SHAPE = _message(dim=(1, _DIMENSION))
_TYPE = _message(tensor_type=(1, _message(numbers="1", shape=(2, _SHAPE))))
_VALUE = _message(texts="1 3", type=(2, _TYPE))
_TENSOR = _message(numbers="1 2", texts="8", raw="4 5 7 9")
_ATTRIBUTE = _message(numbers="3 8 20", texts="1", raw="4 9", t=(5, _TENSOR))
_ATTRIBUTE |= {number << 3 | _FLOAT: _SKIPPED for number in (2, 7)}
_NODE = _message(texts="1 2 3 4 7", attribute=(5, _ATTRIBUTE))
_GRAPH = _message(
    texts="2 10",
    node=(1, _NODE),
    initializer=(5, _TENSOR),
    input=(11, _VALUE),
    output=(12, _VALUE),
    value_info=(13, _VALUE),
)
_ATTRIBUTE[6 << 3 | _BYTES] = _GRAPH
_OPERATORS = _message(numbers="2", texts="1")
_MODEL = _message(
    numbers="1 5", texts="2 3 4 6", graph=(7, _GRAPH), opset_import=(8, _OPERATORS), metadata_props=(14, _ENTRY)
)

_EXTERNAL = {13 << 3 | _BYTES, 14 << 3 | _VARINT}  # of a tensor: external_data, data_location


def check_fields(model: bytes) -> None:
    """Check that a model holds nothing but fields that `rnn-export` writes, each encoded in the one usual way.

    Raises:
        ModelError: it holds something else. The text doesn't name the file.
    """
    try:
        _check(model, 0, len(model), _MODEL, 0)
    except (IndexError, UnicodeDecodeError):  # it ends within a number; a name isn't UTF-8
        raise _other("broken off, or a name that isn't UTF-8") from None


def _check(data: bytes, at: int, end: int, fields: _Fields, depth: int) -> None:
    if depth > _DEEPEST:
        raise _other("graphs within graphs")
    while at < end:
        tag, at = _read_number(data, at)
        kind = fields.get(tag)
        if kind is None:
            if fields is _TENSOR and tag in _EXTERNAL:
                raise ModelError("its weights are in other files, which are never read. Export it again, as one file")
            raise _other(f"the field {tag >> 3} of type {tag & 7} at byte {at}")
        wire_type = tag & 7
        if wire_type == _BYTES:
            length, at = _read_number(data, at)
            start, at = at, at + length
            if at > end:
                break
            if kind is _TEXT:
                data[start:at].decode()
            elif kind is not _SKIPPED:
                _check(data, start, at, kind, depth + 1)
        elif wire_type == _FLOAT:
            at += 4
        else:
            _, at = _read_number(data, at, shortest=False)
    if at != end:
        raise _other(f"a field that is longer than its message, before byte {at}")


def _read_number(data: bytes, at: int, *, shortest: bool = True) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends; `shortest` refuses encodings that are longer than needed.

    Tags and lengths must be the shortest: parsers differ in how many of the upper bits they look at.
    """
    number = data[at]
    if number < 0x80:
        return number, at + 1
    number, shift = number & 0x7F, 7
    for following in range(at + 1, at + _LONGEST_VARINT):
        byte = data[following]
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if shortest and (byte == 0 or number >> 31):
                break
            return number, following + 1
    raise _other(f"a number that is too long, at byte {at}")


def _other(found: str) -> ModelError:
    return ModelError(
        f"damaged, or not written by rnn-export, whose models hold no such thing: {found}. Copy or export it again"
    )
