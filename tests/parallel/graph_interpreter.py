"""Computes the graphs that auto-parallel made for the cards of a layout, in numpy and all at once.

MindSpore cannot run such graphs without Ascend cards. This runs them operator by operator, and lets the cards exchange
what their collectives say, to see whether the numbers are right. It says nothing of an order of collectives that would
make real cards wait for each other: what was sent lies ready until it is fetched.
"""

import collections
import dataclasses
from collections.abc import Generator, Sequence

import numpy as np

from tests.parallel.graph_operators import ATTRIBUTES, OPERATORS
from tests.parallel.graph_text import Graph, LeftOut, Node, Use

COLLECTIVES = ("AllGather", "AllReduce", "ReduceScatter", "Receive", "Send")
_REDUCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A parameter as such: what it holds is read where it is used in a computation."""

    name: str


@dataclasses.dataclass
class Card:
    """A card's program, and the values of its parameters by name, the inputs of a step among them."""

    graph: Graph
    state: dict[str, np.ndarray]

    def run(self) -> Generator[tuple[Node, np.ndarray | None], np.ndarray, tuple]:
        """Does a step; yields each collective with its input, is sent its output, and returns the graph's result."""
        values: dict[str, object] = {}
        for node in self.graph.nodes:
            inputs = [self._resolved(x, values) for x in node.inputs]
            if node.kind in COLLECTIVES:
                value = yield node, None if node.kind == "Receive" else self._read(inputs[0])
            else:
                value = self._computed(node, inputs)
            values[node.number] = _checked(node, value)
        return self._read(values[self.graph.result.of])

    def _resolved(self, x, values):
        if isinstance(x, Use):
            return Reference(x.of) if x.of in self.state else values[x.of]
        return tuple(self._resolved(item, values) for item in x) if isinstance(x, tuple) else x

    def _read(self, x):
        if isinstance(x, Reference):
            return self.state[x.name]
        if isinstance(x, LeftOut):
            return np.full(x.shape, np.nan)  # and so is all that is computed from it
        return tuple(map(self._read, x)) if isinstance(x, tuple) else x

    def _computed(self, node: Node, inputs: list):
        match node.kind:
            case "MakeTuple":
                return tuple(inputs)
            case "TupleGetItem":
                return inputs[0][inputs[1]]
            case "Depend":
                return inputs[0]
            case "UpdateState":
                return None
            case "Load":
                return self._read(inputs[0])
            case "Assign" | "AssignAdd":
                target, value = inputs[:2]
                old = self.state[target.name]
                if isinstance(value, LeftOut) and target.name.startswith("accu_grads."):
                    value = np.zeros(value.shape)  # nn.PipelineGradReducer begins sums of gradients anew
                value = self._read(value)
                value = np.asarray(old + value if node.kind == "AssignAdd" else value, old.dtype)
                if value.shape != old.shape:
                    raise ValueError(f"{node.kind} of {value.shape} to {target.name} {old.shape}")
                self.state[target.name] = value
                return target
        if node.kind not in OPERATORS:
            raise NotImplementedError(f"the operator {node.kind} {node.inputs} {node.attributes} is not known here")
        named = {name: node.attributes[name] for name in ATTRIBUTES.get(node.kind, ())}
        return OPERATORS[node.kind](*map(self._read, inputs), **named)


def _checked(node: Node, value):
    """Returns a tensor with the dtype that the graph says; ValueError where its shape is another."""
    if node.shape is None or isinstance(value, Reference | LeftOut):
        return value
    value = np.asarray(value).astype(node.dtype)
    if value.shape != node.shape:
        raise ValueError(f"{node.kind} %{node.number} gave {value.shape}, the graph says {node.shape}")
    return value


def run_step(cards: Sequence[Card]) -> list[tuple]:
    """Runs a step on all cards of a layout, in the order of their ranks; returns their results.

    Raises:
        RuntimeError: cards wait for each other, or call different collectives.
    """
    programs = [card.run() for card in cards]
    answers: dict[int, np.ndarray | None] = dict.fromkeys(range(len(cards)))
    waiting: dict[int, tuple[Node, np.ndarray | None]] = {}
    results: dict[int, tuple] = {}
    sent = collections.defaultdict(collections.deque)
    while len(results) < len(cards):
        for rank, answer in answers.items():
            waiting.pop(rank, None)
            try:
                waiting[rank] = programs[rank].send(answer)
            except StopIteration as end:
                results[rank] = end.value
        answers = _answers(waiting, sent)
        if not answers and waiting:
            calls = "; ".join(f"{rank}: {_call(*call)}" for rank, call in sorted(waiting.items()))
            raise RuntimeError(f"cards wait for each other: {calls}; ended: {sorted(results)}")
    if any(sent.values()):
        raise RuntimeError(f"sent and never received: {[key for key, values in sent.items() if values]}")
    return [results[rank] for rank in range(len(cards))]


def _answers(waiting, sent) -> dict[int, np.ndarray]:
    """Returns what those get who can go on; ``sent`` holds values by (sender, receiver, tag)."""
    answers = {}
    for rank, (node, value) in waiting.items():
        a = node.attributes
        if node.kind == "Send":
            sent[rank, a["dest_rank"], a["sr_tag"]].append(value)
            answers[rank] = value
        elif node.kind == "Receive":
            if sent[a["src_rank"], rank, a["sr_tag"]]:
                answers[rank] = sent[a["src_rank"], rank, a["sr_tag"]].popleft()
        elif rank not in answers and all(member in waiting for member in a["group_rank_ids"]):
            members = a["group_rank_ids"]
            if rank not in members:
                raise RuntimeError(f"card {rank} calls {_call(node, value)}, which is not for it")
            calls = [_call(*waiting[member]) for member in members]
            if len(set(calls)) == 1:
                answers |= zip(members, _exchanged(node, [waiting[member][1] for member in members]), strict=True)
    return answers


def _call(node: Node, value) -> tuple:
    """What those who take part in a collective must agree on."""
    a = node.attributes
    if node.kind in ("Send", "Receive"):
        return node.kind, a.get("src_rank"), a.get("dest_rank"), a["sr_tag"]
    return node.kind, a["group_rank_ids"], a.get("op"), value.shape, value.dtype.name, node.instance


def _exchanged(node: Node, values: list[np.ndarray]) -> list[np.ndarray]:
    """Returns what each member of a group gets, for what each gave."""
    if node.kind == "AllGather":
        return [np.concatenate(values)] * len(values)
    total = values[0]
    for value in values[1:]:
        total = _REDUCTIONS[node.attributes["op"]](total, value)
    return [total] * len(values) if node.kind == "AllReduce" else np.split(total, len(values))
