"""What a graph that MindSpore has cut says: the part of each parameter that a card has, and its collectives."""

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path

from msllm.errors import UserError

_BYTES = {
    "Float32": 4, "Float16": 2, "BFloat16": 2, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1, "Int8": 1,
}  # fmt: skip
_TENSOR = re.compile(r"Tensor\[(\w+)\]>?\]?, \(([^)]*)\)")
_PARAMETER = re.compile(r"^%para\d+_(\S+): <Ref\[Tensor\[(\w+)\]\], \(([^)]*)\)")
_COLLECTIVE = re.compile(
    r"^  %\S+ = (?:PrimFunc_)?(AllReduce|AllGather|ReduceScatter|AlltoAll|AllToAll|AlltoAllV|Send|Receive|Broadcast)\("
)
_MEMBERS = re.compile(r"(?:group_rank_ids|rank_list): \(([^)]*)\)")
_NAME = re.compile(r"instance name: (\w+)")
PARTS = ("forward", "backward", "parameters", "pipeline", "norm", "redistribution")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one sort in a card's step.

    Attributes:
        part: of the step: forward, backward, parameters (gradients summed, parameters gathered), pipeline, norm (the
            sum over all cards for clipping), redistribution (where two operators want a tensor cut differently).
        kind: MindSpore's operator.
        dtype: of the elements.
        members: cards in the group.
        count: of calls.
        payload: bytes of the whole tensors: what goes into an AllReduce or ReduceScatter, what comes out of an
            AllGather or Receive, of all calls.
    """

    part: str
    kind: str
    dtype: str
    members: int
    count: int
    payload: int

    @property
    def sent(self) -> float:
        """Bytes that a card sends, were each a ring (Patarasuk and Yuan 2009): an estimate."""
        share = (self.members - 1) / self.members
        factor = {"AllReduce": 2 * share, "ReduceScatter": share, "AllGather": share, "Receive": 0.0}
        return factor.get(self.kind, 1.0) * self.payload


@dataclasses.dataclass(frozen=True)
class CutGraph:
    """A card's program.

    Attributes:
        parameters: name -> (dtype, shape of the card's part), the optimiser's moments included.
        collectives: those that it calls, in the order of PARTS.
    """

    parameters: dict[str, tuple[str, tuple[int, ...]]]
    collectives: list[Collective]

    def nbytes(self, name: str) -> int:
        """Bytes of the card's part of a parameter."""
        dtype, shape = self.parameters[name]
        return _BYTES[dtype] * math.prod(shape)


def read_graph(folder: str | Path) -> CutGraph:
    """Reads the graph that MindSpore wrote after checking it, see simulate.environment.

    Raises:
        UserError: there is none.
    """
    files = sorted(Path(folder).rglob("*_validate_*.ir"))
    if not files:
        raise UserError(f"MindSpore wrote no checked graph into {folder}; look at the log of the compilation")
    lines = files[0].read_text(encoding="utf-8").split("\n")
    parameters = {}
    found: Counter[tuple] = Counter()
    sizes: Counter[tuple] = Counter()
    for i, line in enumerate(lines):
        if parameter := _PARAMETER.match(line):
            name, dtype, shape = parameter.groups()
            parameters[name] = (dtype, _shape(shape))
        elif collective := _COLLECTIVE.match(line):
            key, payload = _collective(collective[1], line, lines[i + 1], lines[i + 2])
            if key[-1] == 1:  # among itself, a card sends nothing
                continue
            found[key] += 1
            sizes[key] += payload
    rows = [Collective(*key, count, sizes[key]) for key, count in found.items()]
    rows.sort(key=lambda row: (PARTS.index(row.part), row.kind, row.dtype, row.members))
    return CutGraph(parameters, rows)


def _collective(kind: str, line: str, types: str, scope: str) -> tuple[tuple, int]:
    """Returns (part, kind, dtype, members) of a call, and the bytes of the whole tensor."""
    inputs, _, outputs = types.partition("->")
    members = _MEMBERS.search(line)
    size = len(members[1].split(",")) if members and kind not in ("Send", "Receive") else 2
    name = (_NAME.search(line) or (None, ""))[1]
    dtype = _TENSOR.search(outputs if kind == "Receive" else inputs)[1]
    payload = _nbytes(outputs) if kind == "Receive" else max(_nbytes(inputs), _nbytes(outputs))
    return (_part(kind, name, scope), kind, dtype, size), payload


def _part(kind: str, name: str, scope: str) -> str:
    if "mirror" in name or "parallel_optimizer" in name:
        return "parameters"
    if kind in ("Send", "Receive"):
        return "pipeline"
    if "GLOBALNORM" in name:
        return "norm"
    if "redistribution" in name:
        return "redistribution"
    return "backward" if "(Gradients" in scope else "forward"


def _nbytes(types: str) -> int:
    return sum(_BYTES[dtype] * math.prod(_shape(shape)) for dtype, shape in _TENSOR.findall(types))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size.strip())
