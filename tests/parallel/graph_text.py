"""Reads the text that MindSpore writes of a graph (``*_validate_*.ir``) into nodes that can be computed."""

import dataclasses
import re
from pathlib import Path

import numpy as np

TYPES = {
    "Float64": np.float64, "Float32": np.float32, "Int32": np.int32, "Int64": np.int64, "Bool": np.bool_,
}  # fmt: skip
_PARAMETER = re.compile(r"^%para\d+_(\S+): <(?:Ref\[)?Tensor\[(\w+)\]\]?, \(([^)]*)\)", re.MULTILINE)
_NODE = re.compile(r"^  %(\d+)\(.*?\) = (?:PrimFunc_)?(\w+)(?=\()")
_OUTPUT = re.compile(r"-> \(<(?:Ref\[)?Tensor\[(\w+)\]\]?, \(([^)]*)\)[^<]*>\)$")
_TENSOR = re.compile(r"Tensor\(shape=\[([^\]]*)\], dtype=(\w+), value=([^)]*)\)")
_SCALAR = re.compile(r"(I32|I64|F32|F64|Bool)\(([^)]*)\)")
_WORD = re.compile(r"[^\s,:(){}\[\]]+")
_NAME = re.compile(r"instance name: (\w+)")


@dataclasses.dataclass(frozen=True)
class Use:
    """The value of another node, by its number, or of a parameter, by its name, as an input."""

    of: str


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A constant whose numbers MindSpore does not write: those of more than 30."""

    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        number: of the node; kind: of the operator, without "PrimFunc_"; instance: name of it, may be empty.
        inputs: each a Use, a number, an array, a LeftOut, a tuple of such, or a word.
        attributes: of the operator.
        dtype, shape: of the output where that is one tensor, else None.
    """

    number: str
    kind: str
    instance: str
    inputs: tuple
    attributes: dict
    dtype: type | None
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Graph:
    """One card's program.

    Attributes:
        parameters: name -> (dtype, shape); inputs of the step are the first ones.
        nodes: in an order in which they can be computed.
        result: what is returned.
    """

    parameters: dict[str, tuple[type, tuple[int, ...]]]
    nodes: list[Node]
    result: Use


def read(folder: str | Path) -> Graph:
    """Reads the checked graph that one compilation left in a folder; ValueError for what is not known of its text."""
    (file,) = Path(folder).rglob("*_validate_*.ir")
    text = file.read_text(encoding="utf-8")
    if "# Total subgraphs: 1\n" not in text:
        raise ValueError(f"{file} holds more than one graph")
    head, _, body = text.partition("\nsubgraph @")
    parameters = {name: (TYPES[dtype], _shape(shape)) for name, dtype, shape in _PARAMETER.findall(head)}
    # A node's text ends where its types begin; an array in it may have several lines.
    code = "\n".join(line for line in body.split("\n") if not line.lstrip().startswith("#"))
    nodes = [_node(*pair) for pair in re.findall(r"^(  %\d+\([\s\S]*?)\n      : (.*)$", code, re.MULTILINE)]
    result = re.search(r"^  Return\(%(\d+)\)", code, re.MULTILINE)
    if len(nodes) != len(re.findall(r"^  %\d+\(", code, re.MULTILINE)):
        raise ValueError(f"{file} holds nodes that were not read")
    return Graph(parameters, nodes, Use(result[1]))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size.strip())


def _node(text: str, types: str) -> Node:
    found = _NODE.match(text)
    if found is None:
        raise ValueError(f"no node: {text}")
    inputs, end = _value(text, found.end())
    instance, attributes = _NAME.search(text, end), {}
    start = text.find("primitive_attrs: {", end)
    if start >= 0:
        attributes, _ = _value(text, start + len("primitive_attrs: "))
    output = _OUTPUT.search(types)
    dtype, shape = (TYPES[output[1]], _shape(output[2])) if output else (None, None)
    return Node(found[1], found[2], instance[1] if instance else "", inputs, attributes, dtype, shape)


def _value(text: str, at: int) -> tuple[object, int]:
    """Returns the value that begins at a place of a text, and the place after it."""
    if text[at] in "([{":
        return _several(text, at)
    if tensor := _TENSOR.match(text, at):
        return _array(*tensor.groups()), tensor.end()
    if scalar := _SCALAR.match(text, at):
        return {"I": int, "F": float, "B": lambda v: bool(int(v))}[scalar[1][0]](scalar[2]), scalar.end()
    if text[at] == '"':
        end = text.index('"', at + 1)
        return text[at + 1 : end], end + 1
    word = _WORD.match(text, at)
    if word is None:
        raise ValueError(f"no value: {text[at : at + 80]}")
    if word[0].startswith("%"):
        return Use(re.sub(r"^%(?:para\d+_)?", "", word[0])), word.end()
    if text.startswith(("(", "["), word.end()):  # a type, such as Ref[Tensor(F32)], or UMonad[U]
        inner, end = _several(text, word.end())
        return (word[0], *inner), end
    return int(word[0]) if re.fullmatch(r"-?\d+", word[0]) else word[0], word.end()


def _several(text: str, at: int) -> tuple[tuple | dict, int]:
    """A tuple, a list or, in braces, names with values."""
    close, named = {"(": ")", "[": "]", "{": "}"}[text[at]], text[at] == "{"
    values, names = [], []
    at += 1
    while text[at] != close:
        if named:
            name = _WORD.match(text, at)
            names.append(name[0])
            at = name.end() + len(": ")
        value, at = _value(text, at)
        values.append(value)
        if text.startswith(", ", at):
            at += 2
    return dict(zip(names, values, strict=True)) if named else tuple(values), at + 1


def _array(shape: str, dtype: str, value: str) -> np.ndarray | LeftOut:
    if "..." in value:
        return LeftOut(_shape(shape))
    numbers = np.array(re.sub(r"[\[\],]", " ", value).split(), np.float64)
    return numbers.astype(TYPES[dtype]).reshape(_shape(shape))
