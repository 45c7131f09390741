"""A look into ONNX bytes for weights kept in other files, without the onnx package.

A tensor may point to any path of the machine (`external_data`), which a backend would open and read unverified. This
walks the protobuf wire format along the few fields through which a ModelProto reaches a tensor (graphs, nested
subgraphs, functions, sparse tensors) and refuses a tensor that has `data_location` or `external_data`. The walk keeps a
list of what is still to visit instead of recursing, and counts fields, so that no file can make it recurse deeply or
run for minutes.

Field numbers: onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; wire format:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import BundleInvalid

MAX_FIELDS = 4_000_000

# message -> field number -> message it holds
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
EXTERNAL_DATA = 13
DATA_LOCATION = 14

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _MalformedError(Exception):
    """Not protobuf; turned into BundleInvalid with the file's name."""


def refuse_external_data(data: bytes, name: str) -> None:
    """Return if `data` is a ModelProto with a graph and all weights inside. Raises BundleInvalid naming the file."""
    if data[4:8] == b"ORTM":
        raise BundleInvalid(f"{name} is an ORT-format model; a bundle holds ONNX files. Export the bundle again.")
    try:
        external, has_graph = _scan(data)
    except _MalformedError as problem:
        raise BundleInvalid(f"{name} is not an ONNX file: {problem}. Export the bundle again.") from None
    if external:
        raise BundleInvalid(f"{name} keeps weights in other files. Export the bundle with all weights inside.")
    if not has_graph:
        raise BundleInvalid(f"{name} is not an ONNX file: it holds no graph. Export the bundle again.")


def _scan(data: bytes) -> tuple[bool, bool]:
    """(a tensor points outside, there is a graph)."""
    todo: list[tuple[str, int, int]] = [("model", 0, len(data))]
    budget = MAX_FIELDS
    has_graph = False
    while todo:
        kind, start, end = todo.pop()
        children = FIELDS.get(kind, {})
        for number, wire, first, last in _fields(data, start, end):
            budget -= 1
            if budget < 0:
                raise _MalformedError(f"more than {MAX_FIELDS} fields")
            if kind == "tensor" and _points_outside(number, wire, first):
                return True, has_graph
            if wire == _BYTES and number in children:
                has_graph = has_graph or (kind == "model" and number == 7)
                todo.append((children[number], first, last))
    return False, has_graph


def _points_outside(number: int, wire: int, value: int) -> bool:
    """Any location but 0 (inside) counts: parsers cut the value to 32 bits, so a large one may mean 1 (external)."""
    return (number == EXTERNAL_DATA and wire == _BYTES) or (number == DATA_LOCATION and wire == _VARINT and value != 0)


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, a, b) of each field in data[position:end]; a is the varint's value, or a:b the content."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        # Parsers keep 32 bits of a tag; a longer one would be read differently there than here.
        if number == 0 or tag > 0xFFFFFFFF:
            raise _MalformedError("bad field tag")
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, wire, value, position
            continue
        if wire == _BYTES:
            size, position = _varint(data, position, end)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _MalformedError("bad wire type")
        if size > end - position:
            raise _MalformedError("it is cut short")
        yield number, wire, position, position + size
        position += size


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _MalformedError("bad number")
