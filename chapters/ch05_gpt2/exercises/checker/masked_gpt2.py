"""Checks masked_gpt2.py: the reader's model and msllm's with the same random weights, tensor by tensor.

What the reader's model computes is noted by wrapping its cells and methods; the first difference in order of
computation is told, and the mistake where a variant that is wrong on purpose gives the same.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn  # imported here, so that the wait for it is not the reader's code's

from msllm.files import read_text
from msllm.layers import record_attention
from msllm.lessons.checking import NotDone, Task, Wrong
from msllm.lessons.compare import agree, difference
from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel

TOLERANCE = 1e-4
# No two sizes are the same, so that no shape is right by chance.
CONFIG = GPT2Config(vocab_size=17, n_positions=8, n_embd=12, n_layer=2, n_head=3)
IDS = np.array([[3, 14, 15, 9, 2], [6, 5, 3, 5, 8]], np.int32)
METHODS = {"attn": ("weights", "merge_heads"), "mlp": ("gelu",)}


@dataclasses.dataclass
class Trace:
    """What a model computed: arrays by name; split_heads has the three of queries, keys and values."""

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def note(self, name: str, value) -> None:
        if isinstance(value, Tensor) and name not in self.arrays:
            self.arrays[name] = value.asnumpy()

    def watch(self, owner, method: str, name: str, pick: Callable | None = None) -> None:
        """Notes what ``owner.method`` gets (as name + " in") and gives; or what ``pick`` makes of its result."""
        inner = getattr(owner, method)

        def watched(*args):
            if pick is None:
                self.note(f"{name} in", args[0])  # before the call, which may fail
            out = inner(*args)
            for key, value in ({name: out} if pick is None else pick(out)).items():
                self.note(key, value)
            return out

        setattr(owner, method, watched)


def check(function: Callable) -> None:
    weights, expected = reference()
    trace, problems, crash = Trace(), [], None

    def prepare(model) -> None:
        problems.extend(_give(model, weights))
        _watch_reader(model, trace)

    try:
        function(CONFIG, prepare, IDS.copy())
    except Wrong as e:
        crash = e
    if problems:
        raise Wrong(*problems[:2])
    if crash is None and not trace.arrays:
        raise Wrong("run() does not run the model with the weights that prepare(model) gives; leave run() as it is")
    got = {"embeddings" if name == "h.0 in" else name: value for name, value in trace.arrays.items()}
    right, lines = _first_difference(got, expected, weights, crash is None)
    if crash is None:
        if lines:
            raise Wrong(*lines)
        return
    undone = isinstance(crash.__cause__, NameError) and getattr(crash.__cause__, "name", None) == "MASK"
    told = _open_masks(crash.__cause__) if undone else [crash.args[0].partition(" -----")[0]]  # C++ stacks
    if lines:
        raise Wrong(*lines[:2], told[0])
    if right:
        told.append(f"right so far: {right} tensors, the last is {list(expected)[right - 1]}")
    raise (NotDone if undone else Wrong)(*told)


def reference() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns random weights by name and what msllm's model computes with them, in order of computation."""
    model, rng, trace = GPT2LMHeadModel(CONFIG), np.random.default_rng(0), Trace()
    weights = {}
    for name, parameter in model.parameters_and_names():
        norm = ".ln_" in name and name.endswith("weight")
        weights[name] = (float(norm) + 0.4 * rng.standard_normal(parameter.shape)).astype(np.float32)
        parameter.set_data(Tensor(weights[name]))
    model.set_train(False)
    body = model.transformer
    for i, block in enumerate(body.h):
        for norm in ("ln_1", "ln_2"):
            _watch_norm(trace, getattr(block, norm), f"h.{i}.{norm}")
        for owner, cell in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_proj")):
            name = f"h.{i}.{owner}.{cell}"
            trace.watch(getattr(getattr(block, owner), cell), "construct", name)
    _watch_norm(trace, body.ln_f, "ln_f")
    with record_attention() as recorded:
        trace.note("logits", model(Tensor(IDS)))
    return weights, _in_order(trace.arrays, recorded, weights)


def _watch_norm(trace: Trace, norm, name: str) -> None:
    """The library's norm takes the sum too, and gives both."""
    trace.watch(norm, "add", name, lambda out: {f"{name} in": out[0], name: out[1]})


def _in_order(noted: dict, recorded: list, weights: dict) -> dict[str, np.ndarray]:
    out = {"embeddings": noted["h.0.ln_1 in"]}
    for i in range(CONFIG.n_layer):
        block, attention, mlp = f"h.{i}", f"h.{i}.attn", f"h.{i}.mlp"
        out[f"{block}.ln_1"] = noted[f"{block}.ln_1"]
        out[f"{attention}.c_attn"] = noted[f"{attention}.c_attn"]
        for name, part in zip(("queries", "keys", "values"), np.split(noted[f"{attention}.c_attn"], 3, axis=2)):
            out[f"{attention}.split_heads, the {name}"] = _split(part)
        out[f"{attention}.weights"] = recorded[i].astype(np.float32)
        out[f"{attention}.merge_heads"] = noted[f"{attention}.c_proj in"]
        out[attention] = noted[f"{attention}.c_proj"]
        out[f"{block}.ln_2"] = noted[f"{block}.ln_2"]
        fc = [weights[f"transformer.{mlp}.c_fc.{kind}"] for kind in ("weight", "bias")]
        out[f"{mlp}.c_fc"] = noted[f"{block}.ln_2"] @ fc[0].T + fc[1]
        out[f"{mlp}.gelu"] = noted[f"{mlp}.c_proj in"]
        out[mlp] = noted[f"{mlp}.c_proj"]
        out[block] = noted["ln_f in" if i + 1 == CONFIG.n_layer else f"h.{i + 1}.ln_1 in"]
    return {**out, "ln_f": noted["ln_f"], "logits": noted["logits"]}


def _give(model: nn.Cell, weights: dict[str, np.ndarray]) -> list[str]:
    """Gives the reader's model its weights; returns what is wrong with its parameters."""
    theirs = dict(model.parameters_and_names())
    problems = [f"there is no parameter {name} any more; keep the cells' names" for name in weights.keys() - theirs]
    more = sorted(theirs.keys() - weights.keys())
    if more:
        problems.append(f"{more[0]} is a parameter of its own; GPT-2 has none of this name, its head is tied to wte")
    for name in weights.keys() & theirs:
        if theirs[name].shape != weights[name].shape:
            problems.append(f"{name} has the shape {theirs[name].shape}, expected {weights[name].shape}")
        else:
            theirs[name].set_data(Tensor(weights[name]))
    return sorted(problems)


def _watch_reader(model: nn.Cell, trace: Trace) -> None:
    for full, cell in list(model.cells_and_names()):
        name = full.removeprefix("transformer.")
        if isinstance(cell, nn.CellList) or name == "transformer":
            continue
        for method in METHODS.get(name.rpartition(".")[2], ()):
            if hasattr(cell, method):
                trace.watch(cell, method, f"{name}.{method}")
        if hasattr(cell, "split_heads"):
            _watch_split(trace, cell, f"{name}.split_heads, the ")
        trace.watch(cell, "construct", name or "logits")


def _watch_split(trace: Trace, cell: nn.Cell, name: str) -> None:
    """The calls in turn are of queries, keys and values."""

    def pick(out):
        left = [part for part in ("queries", "keys", "values") if name + part not in trace.arrays]
        return {name + (left or ["values"])[0]: out}

    trace.watch(cell, "split_heads", name, pick)


def _first_difference(got: dict, expected: dict, weights: dict, finished: bool) -> tuple[int, list[str]]:
    """Returns how many tensors are right before the first that is not, and lines on that; none where all there are."""
    for right, (name, value) in enumerate(expected.items()):
        later = any(other in got for other in list(expected)[right:])
        if name not in got:
            if not (finished or later):
                return right, []
            what = f"{name} is never computed" if name == "logits" else f"{name} is not called where it should be"
            return right, [what, *_hints(name, got, expected, weights)]
        lines = difference(got[name], value, TOLERANCE)
        if lines:
            return right, [f"{name} is off: {lines[0]}", *_hints(name, got, expected, weights)]
    return len(expected), []


def _open_masks(error: BaseException) -> list[str]:
    """Returns a line on the MASK that was met, and one on the others that are left."""
    place = error.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    path, line = Path(place.tb_frame.f_code.co_filename), place.tb_lineno
    source = read_text(path)
    lines = {n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and n.id == "MASK"}
    comment = re.search(r"# *(\(\d+\) .*)", source.splitlines()[line - 1])
    told = [f"{path.name}, line {line}: MASK is not filled in yet" + (f": {comment[1]}" if comment else "")]
    others = sorted(lines - {line})
    if others:
        told.append(f"{len(others)} more: line{'s' * (len(others) > 1)} {', '.join(map(str, others))}")
    return told


def _hints(name: str, got: dict, expected: dict, weights: dict) -> list[str]:
    """Returns the likely mistake: that whose variant gives what was got."""
    for text, variant in _variants(name, got, expected, weights):
        with np.errstate(all="ignore"):
            theirs = variant()
        found = got.get(name)
        if theirs is True or (found is not None and theirs is not None and agree(found, theirs, TOLERANCE)):
            return [f"likely mistake: {text}"]
    return []


def _same(got: dict, one: str, other: str) -> bool | None:
    return (one in got and other in got and agree(got[one], got[other], TOLERANCE)) or None


def _variants(name: str, got: dict, expected: dict, weights: dict) -> list[tuple[str, Callable]]:
    """Returns the mistakes that a tensor may show: what to say, and the wrong tensor, or True where it is seen."""
    first, last = name.rpartition(".")[0], name.rpartition(".")[2]
    if name == "embeddings":
        return _embedding_variants(weights)
    if name in [f"h.{i}" for i in range(CONFIG.n_layer)]:
        return _block_variants(name, expected)
    if last.startswith("split_heads"):
        third = ("queries", "keys", "values").index(last.rpartition(" ")[2])
        return _split_variants(np.split(expected[f"{first}.c_attn"], 3, axis=2)[third])
    if last == "weights":
        return _weight_variants(*(expected[f"{first}.split_heads, the {part}"] for part in ("queries", "keys")))
    if last == "merge_heads":
        values, shape = expected[f"{first}.split_heads, the values"], expected[name].shape
        out = expected[f"{first}.weights"] @ values
        text = "the heads are reshaped without exchanging axes first: what belongs to a token is torn apart"
        return [
            (text, lambda: out.reshape(shape)),
            ("the axes are exchanged in the wrong order: heads come before their numbers, H then C", lambda: _ch(out)),
        ]
    if last == "gelu":
        return _gelu_variants(expected[f"{first}.c_fc"])
    if last == "ln_1":
        before = "embeddings" if first == "h.0" else f"h.{int(first[2:]) - 1}"
        read = {**got, "before": expected[before], "read": got.get(f"{first}.attn.c_attn in")}
        text = "attention reads x as it is, as in GPT-1; GPT-2 norms before: attention reads ln_1(x)"
        return [(text, lambda: True if read["read"] is not None and _same(read, "read", "before") else None)]
    if last == "ln_2":
        return _second_norm_variants(name, first, got, expected, weights)
    if name == "ln_f":
        return [("the hidden states are returned without the final norm", lambda: name not in got or None)]
    return []


def _embedding_variants(weights: dict) -> list[tuple[str, Callable]]:
    wte, wpe = weights["transformer.wte.weight"][IDS], weights["transformer.wpe.weight"]
    T = IDS.shape[1]
    return [
        ("the positions are not added", lambda: wte),
        ("the tokens are not there: wte is not used", lambda: np.broadcast_to(wpe[:T], wte.shape)),
        ("positions count from 0, not from 1", lambda: wte + wpe[1 : T + 1]),
        ("every token has position 0", lambda: wte + wpe[0]),
        ("the positions run backwards", lambda: wte + wpe[:T][::-1]),
        ("tokens and positions are multiplied; they are added", lambda: wte * wpe[:T]),
        ("the tokens are scaled by sqrt(D), as in the Transformer; GPT-2 does not", lambda: wte * 12**0.5 + wpe[:T]),
    ]


def _split(x_BTD: np.ndarray) -> np.ndarray:
    B, T, D = x_BTD.shape
    H = CONFIG.n_head
    return np.ascontiguousarray(x_BTD.reshape(B, T, H, D // H).swapaxes(1, 2))


def _ch(x_BHTC: np.ndarray) -> np.ndarray:
    return x_BHTC.transpose(0, 2, 3, 1).reshape(x_BHTC.shape[0], x_BHTC.shape[2], -1)


def _split_variants(x_BTD: np.ndarray) -> list[tuple[str, Callable]]:
    B, T, D = x_BTD.shape
    H, C = CONFIG.n_head, D // CONFIG.n_head
    torn = "reshaped to (B, H, T, C) at once, which tears tokens apart; to (B, T, H, C) first, then exchange T and H"
    return [
        (torn, lambda: x_BTD.reshape(B, H, T, C)),
        ("D is C times H; it is H times C: head 0 first", lambda: x_BTD.reshape(B, T, C, H).transpose(0, 3, 1, 2)),
        ("H and T are not exchanged", lambda: x_BTD.reshape(B, T, H, C)),
    ]


def _weight_variants(q: np.ndarray, k: np.ndarray) -> list[tuple[str, Callable]]:
    T, C = q.shape[2:]
    query, key = np.arange(T)[:, None], np.arange(T)[None, :]
    past = key <= query

    def weights(scale=C**-0.5, seen=past, axis=-1):
        scores = np.where(seen, q @ k.swapaxes(2, 3) * np.float32(scale), -1e10)
        e = np.exp(scores - scores.max(axis, keepdims=True))
        return (e / e.sum(axis, keepdims=True)).astype(np.float32)

    def masked_scores():
        return np.where(past, q @ k.swapaxes(2, 3) * np.float32(C**-0.5), -1e10).astype(np.float32)

    return [
        ("the scale is 1 / sqrt(C); the scores are not scaled", lambda: weights(1.0)),
        ("the scale is 1 / sqrt(C), not 1 / C", lambda: weights(1 / C)),
        ("the scores are divided by sqrt(C), not multiplied", lambda: weights(C**0.5)),
        ("C is the width of a head, not the whole width D", lambda: weights(CONFIG.n_embd**-0.5)),
        ("the scale comes of C, not of the length T", lambda: weights(T**-0.5)),
        ("a query sees the keys after it: key <= query", lambda: weights(seen=key >= query)),
        ("a query sees the keys after it, and not itself: key <= query", lambda: weights(seen=key > query)),
        (
            "a query does not see itself, so that the first sees nothing: key <= query",
            lambda: weights(seen=key < query),
        ),
        ("every query sees every key", lambda: weights(seen=np.ones_like(past))),
        ("softmax is over the queries; the keys are the last axis", lambda: weights(axis=2)),
        ("softmax is over the heads; the keys are the last axis", lambda: weights(axis=1)),
        ("the scores are returned as they are; softmax makes weights of them", masked_scores),
    ]


def _gelu_variants(x: np.ndarray) -> list[tuple[str, Callable]]:
    root = math.sqrt(2 / math.pi)

    def gelu(u):
        return (x / (1 + np.exp(-2 * u.astype(np.float64)))).astype(np.float32)

    return [
        ("sqrt(2 / pi) is missing", lambda: gelu(x + 0.044715 * x**3)),
        ("2 / pi is without its square root", lambda: gelu(2 / math.pi * (x + 0.044715 * x**3))),
        ("the cube of x is missing", lambda: gelu(root * x)),
        ("it is the cube of x, not its square", lambda: gelu(root * (x + 0.044715 * x**2))),
        ("sqrt(2 / pi) is a factor of both terms: brackets", lambda: gelu(root * x + 0.044715 * x**3)),
        ("the factor 2 is there already", lambda: gelu(2 * root * (x + 0.044715 * x**3))),
    ]


def _second_norm_variants(name, block, got, expected, weights) -> list[tuple[str, Callable]]:
    norm = [weights[f"transformer.{name}.{kind}"] for kind in ("weight", "bias")]
    start = expected["embeddings" if block == "h.0" else f"h.{int(block[2:]) - 1}"]
    attention = expected[f"{block}.attn"]

    def normed(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG.layer_norm_epsilon) * norm[0] + norm[1]

    read = {"read": got.get(f"{block}.mlp.c_fc in"), "sum": start + attention}
    return [
        ("x + attention is not kept: ln_2 reads attention alone", lambda: normed(attention)),
        ("ln_2 reads what the block was given, without the attention", lambda: normed(start)),
        (
            "mlp reads x as it is, as in GPT-1; GPT-2 norms before: mlp reads ln_2(x)",
            lambda: True if read["read"] is not None and _same(read, "read", "sum") else None,
        ),
    ]


def _block_variants(name: str, expected: dict) -> list[tuple[str, Callable]]:
    start = expected["embeddings" if name == "h.0" else f"h.{int(name[2:]) - 1}"]
    attention, mlp, normed = expected[f"{name}.attn"], expected[f"{name}.mlp"], expected[f"{name}.ln_2"]
    return [
        ("the residual is missing: x + mlp(...)", lambda: mlp),
        ("the residual is what went into ln_2, not what came out of it", lambda: normed + mlp),
        ("the residual is x after attention, not what the block was given", lambda: start + mlp),
        ("x is added twice", lambda: 2 * (start + attention) + mlp),
    ]


TASKS = (Task("run", check),)
