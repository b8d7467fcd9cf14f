"""The parameters of a model by its configuration alone, and which of them a worker of a layout holds.

Nothing is built: a model of 70 billion parameters is a list of shapes. A test builds small models and compares names,
shapes and slices with these.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

from msllm.parallel.comm import BUCKET_BYTES
from msllm.parallel.config import ParallelConfig
from msllm.parallel.mesh import coordinates
from msllm.parallel.plans import PLANS, Plan, plan_for, sizes
from msllm.parallel.schedule import cut

FIRST, LAST = -1, -2  # places of what comes before the blocks, and after them


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Bytes of a number.

    Attributes:
        compute: of activations, of weights in products, and of messages that carry either.
        gradients: of a gradient that is kept or sent.
        logits: of a logit and its gradient.
    """

    compute: int = 4
    gradients: int = 4
    logits: int = 4


FLOAT32 = Numbers()
# What MindSpore's auto-parallel is given: parameters, moments, gradients and the loss in float32, products and the
# messages of activations in bfloat16.
BFLOAT16 = Numbers(compute=2)


@dataclasses.dataclass(frozen=True)
class Size:
    """One parameter.

    Attributes:
        name, shape: as in the whole model.
        place: the number of its block, FIRST or LAST.
        axis: along which tensor-parallel workers cut it, None where each has all of it.
        matrices: how many lie in it one upon the other, each of which is cut.
        expert: the number of its expert, None for what is of none.
    """

    name: str
    shape: tuple[int, ...]
    place: int
    axis: int | None = None
    matrices: int = 1
    expert: int | None = None

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def local(self, tensor: int, index: int) -> tuple[int, ...]:
        """Returns the shape of what a member of a tensor-parallel group holds; the first have one row more where it is
        uneven."""
        if self.axis is None or tensor == 1:
            return self.shape
        small, more = divmod(self.shape[self.axis] // self.matrices, tensor)
        rows = (small + (index < more)) * self.matrices
        return (*self.shape[: self.axis], rows, *self.shape[self.axis + 1 :])


class ModelSizes:
    """What planning needs to know of a model.

    Args:
        config: of a family that has a plan (UserError for others).

    Attributes:
        family: its model_type.
        width, heads, kv_heads, head_width, inner, vocab_size, layers, experts: D, H, K, C, F, V, L, E.
        top_k: experts of a token; 0 without experts.
        known: as ParallelConfig.check takes it.
        tied: whether the head is the token embedding.
        embedding: the name of its weight.
        dropout: whether something is dropped out of the residual stream.
        parameters: Sizes, in the model's order.
        footprints: those that ``blocks`` has worked out already.
    """

    def __init__(self, config):
        self.config, self.family = config, config.model_type
        plan, self.known = plan_for(config.model_type), sizes(config)
        self.heads, self.kv_heads, self.layers = (self.known[k] for k in ("heads", "kv_heads", "layers"))
        self.inner, self.vocab_size, self.experts = (self.known[k] for k in ("inner", "vocab_size", "experts"))
        self.width = getattr(config, "hidden_size", None) or config.n_embd
        self.head_width = getattr(config, "head_dim", None) or self.width // self.heads
        self.top_k = getattr(config, "num_experts_per_tok", 0)
        self.tied = config.tie_word_embeddings
        drops = ("resid_pdrop", "hidden_dropout", "embd_pdrop")
        self.dropout = any(getattr(config, name, 0.0) > 0 for name in drops)
        self.parameters = tuple(_FAMILIES[self.family](self, plan))
        self.embedding = self.parameters[0].name
        self.part = functools.cache(self._part)
        self.footprints: dict = {}

    @functools.cached_property
    def numbers(self) -> int:
        """All parameters together."""
        return sum(p.numbers for p in self.parameters)

    def _part(self, tensor: int, index: int, where: tuple, experts: tuple[int, int]) -> "Part":
        """Returns what the worker ``index`` of a tensor group has.

        Args:
            where: (start, stop) of its layers, pair by pair, and whether it is the first stage, and the last.
            experts: (start, stop) of its experts.
        """
        *pieces, is_first, is_last = where
        places = {i for start, stop in pieces for i in range(start, stop)}
        places |= {FIRST} if is_first else set()
        places |= {LAST} if is_last else set()
        head = self.embedding if is_last and self.tied else None
        here = [p for p in self.parameters if p.place in places or p.name == head]
        return Part([p for p in here if p.expert is None or p.expert in range(*experts)], tensor, index)


def _linear(plan: Plan, cell: str, rows: int, columns: int, bias: bool):
    """Yields name, shape, axis and matrices of the parameters of a Linear in a block."""
    matrices = plan.columns.get(cell)
    axis = 0 if matrices else 1 if cell in plan.rows else None
    yield f"{cell}.weight", (rows, columns), axis, matrices or 1
    if bias:
        yield f"{cell}.bias", (rows,), 0 if matrices else None, matrices or 1


def _layer_norm(cell: str, width: int):
    yield f"{cell}.weight", (width,), None, 1
    yield f"{cell}.bias", (width,), None, 1


def _gpt(model: ModelSizes, plan: Plan, tokens: str, pre_norm: bool) -> Iterator[Size]:
    D, F, positions = model.width, model.inner, model.config.n_positions
    yield Size(f"transformer.{tokens}.weight", (model.vocab_size, D), FIRST, 0)
    yield Size(f"transformer.{plan.positions}.weight", (positions, D), FIRST)
    attention = (*_linear(plan, "attn.c_attn", 3 * D, D, True), *_linear(plan, "attn.c_proj", D, D, True))
    mlp = (*_linear(plan, "mlp.c_fc", F, D, True), *_linear(plan, "mlp.c_proj", D, F, True))
    norms = _layer_norm("ln_1", D), _layer_norm("ln_2", D)
    parts = (norms[0], attention, norms[1], mlp) if pre_norm else (attention, norms[0], mlp, norms[1])
    yield from _blocks(model, "transformer.h", [row for part in parts for row in part])
    if pre_norm:
        yield from _ends("transformer.ln_f", D)
    yield from _head(model)


def _bloom(model: ModelSizes, plan: Plan) -> Iterator[Size]:
    D, F = model.width, model.inner
    yield Size("transformer.word_embeddings.weight", (model.vocab_size, D), FIRST, 0)
    for name, shape, *_ in _layer_norm("transformer.word_embeddings_layernorm", D):
        yield Size(name, shape, FIRST)
    parts = (
        _layer_norm("input_layernorm", D),
        _linear(plan, "self_attention.query_key_value", 3 * D, D, True),
        _linear(plan, "self_attention.dense", D, D, True),
        _layer_norm("post_attention_layernorm", D),
        _linear(plan, "mlp.dense_h_to_4h", F, D, True),
        _linear(plan, "mlp.dense_4h_to_h", D, F, True),
    )
    yield from _blocks(model, "transformer.h", [row for part in parts for row in part])
    yield from _ends("transformer.ln_f", D)
    yield from _head(model)


def _llama(model: ModelSizes, plan: Plan) -> Iterator[Size]:
    D, F, C, bias = model.width, model.inner, model.head_width, model.config.attention_bias
    yield Size("model.embed_tokens.weight", (model.vocab_size, D), FIRST, 0)
    rows = [row for name in "q" for row in _linear(plan, f"self_attn.{name}_proj", model.heads * C, D, bias)]
    rows += [row for name in "kv" for row in _linear(plan, f"self_attn.{name}_proj", model.kv_heads * C, D, bias)]
    rows += _linear(plan, "self_attn.o_proj", D, model.heads * C, bias)
    if not model.experts:
        for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            rows += _linear(plan, f"mlp.{name}_proj", *shape, model.config.mlp_bias)
    else:
        rows.append((f"{plan.experts}.gate.weight", (model.experts, D), None, 1))
        for expert in range(model.experts):
            for name, shape, axis in (("w1", (F, D), 0), ("w2", (D, F), 1), ("w3", (F, D), 0)):
                rows.append((f"{plan.experts}.experts.{expert}.{name}.weight", shape, axis, 1, expert))
    rows += [(f"{name}.weight", (D,), None, 1) for name in ("input_layernorm", "post_attention_layernorm")]
    yield from _blocks(model, "model.layers", rows)
    yield Size("model.norm.weight", (D,), LAST)
    yield from _head(model)


def _blocks(model: ModelSizes, prefix: str, rows: list[tuple]) -> Iterator[Size]:
    for layer in range(model.layers):
        for name, shape, axis, matrices, *expert in rows:
            yield Size(f"{prefix}.{layer}.{name}", shape, layer, axis, matrices, *expert)


def _ends(cell: str, width: int) -> Iterator[Size]:
    for name, shape, *_ in _layer_norm(cell, width):
        yield Size(name, shape, LAST)


def _head(model: ModelSizes) -> Iterator[Size]:
    if not model.tied:
        yield Size("lm_head.weight", (model.vocab_size, model.width), LAST, 0)


_FAMILIES = {
    "gpt2": functools.partial(_gpt, tokens="wte", pre_norm=True),
    "openai-gpt": functools.partial(_gpt, tokens="tokens_embed", pre_norm=False),
    "bloom": _bloom,
    "llama": _llama,
    "mixtral": _llama,
}
assert _FAMILIES.keys() == PLANS.keys()


class Part:
    """Some of a model's parameters, cut as one worker has them; many layouts have the same.

    Attributes:
        sizes: the Sizes, in the model's order.
        shapes: name -> what the worker has of it; ``numbers``: how many numbers that is.
        total, largest: numbers of all of them, and of the largest.
    """

    def __init__(self, sizes: list[Size], tensor: int, index: int):
        self.sizes, self.tensor = sizes, tensor
        self.shapes = {p.name: p.local(tensor, index) for p in sizes}
        self.numbers = {name: math.prod(shape) for name, shape in self.shapes.items()}
        self.total, self.largest = sum(self.numbers.values()), max(self.numbers.values())
        self.of = functools.cache(self._of)
        self.buckets = functools.cache(self._buckets)
        self.kept_in_shares = functools.cache(self._kept_in_shares)

    def _of(self, *, block: int | None = None, in_blocks: bool | None = None, expert: bool | None = None) -> list[int]:
        """Returns the numbers of parameters.

        Args:
            block: of this block alone.
            in_blocks: of blocks, or of what is in none.
            expert: of experts, or of the rest.
        """
        return [
            self.numbers[p.name]
            for p in self.sizes
            if (block is None or p.place == block)
            and (in_blocks is None or (p.place >= 0) == in_blocks)
            and (expert is None or (p.expert is not None) == expert)
        ]

    def _buckets(self, **chosen) -> list[int]:
        """Returns how many numbers are in each bucket of parameters (see ``of``), as comm.buckets_of fills them."""
        found, size = [0], 0
        for count in self.of(**chosen):
            if found[-1] and size + 4 * count > BUCKET_BYTES:
                found.append(0)
                size = 0
            found[-1] += count
            size += 4 * count
        return [bucket for bucket in found if bucket]

    def _kept_in_shares(self, data: int) -> int:
        """Returns how many numbers stay on a card whose auto-parallel shares the first axis of each parameter among all
        cards that have the same: those of the data-parallel workers, and where it is not cut, of the tensor-parallel
        ones too. A parameter whose first axis they do not divide stays whole.
        """
        total = 0
        for size in self.sizes:
            shape, cards = self.shapes[size.name], data * (self.tensor if size.axis is None else 1)
            total += math.prod(shape) // (cards if shape[0] % cards == 0 else 1)
        return total


class Held:
    """What one worker of a layout holds of a model.

    Args:
        model: its sizes.
        parallel: the layout, ``data`` filled in.
        rank: of the worker.
        bounds: (start, stop) of the layers of all parts of a pipeline, see Stage; without them, as many layers each.

    Attributes:
        stage, tensor_index: its places in the mesh.
        pieces: (start, stop) of its layers, one pair a chunk, of ``parts`` pieces of the model.
        part: the parameters that it works with.
        samples, expert_samples: how many workers have other tokens and the same parameters, of experts or of the rest;
            ``leads``: whether this is the first of the rest's, and of experts'.
    """

    def __init__(self, model: ModelSizes, parallel: ParallelConfig, rank: int = 0, bounds=None):
        self.model, self.parallel = model, parallel
        self.stage, data_index, sequence_index, self.tensor_index = coordinates(rank, parallel)
        self.leads = (data_index + sequence_index == 0, data_index // parallel.expert + sequence_index == 0)
        self.parts = parallel.pipeline * parallel.chunks
        bounds = bounds or even_cut(model.layers, self.parts)
        self.pieces = bounds[self.stage :: parallel.pipeline]
        per = model.experts // parallel.expert if model.experts else 0
        first = data_index % parallel.expert * per
        self.part = model.part(
            parallel.tensor,
            self.tensor_index,
            (*self.pieces, self.is_first, self.is_last),
            (first, first + per),
        )
        self.samples = parallel.data * parallel.sequence
        self.expert_samples = self.samples // parallel.expert

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.parallel.pipeline - 1

    @property
    def layers(self) -> int:
        """How many blocks it has."""
        return sum(stop - start for start, stop in self.pieces)

    @property
    def recomputes(self) -> bool:
        """Whether blocks are wrapped one by one, and run again in the backward pass."""
        return self.parallel.recompute or self.parallel.optimizer == 3

    def number(self, chunk: int) -> int:
        """The number of a chunk among the parts of the model."""
        return chunk * self.parallel.pipeline + self.stage

    @property
    def shared(self) -> list[tuple[list[int], int]]:
        """Numbers in each bucket of parameters, and in how many shares they are: of the rest and of experts, without
        those that blocks share out themselves (optimizer 3)."""
        in_blocks = False if self.parallel.optimizer == 3 else None
        return [
            (self.part.buckets(in_blocks=in_blocks, expert=False), self.samples),
            (self.part.buckets(in_blocks=in_blocks, expert=True), self.expert_samples),
        ]

    @property
    def owned_in_blocks(self) -> int:
        """How many numbers of its blocks a worker owns, where blocks share their parameters out (optimizer 3)."""
        if self.parallel.optimizer < 3:
            return 0
        places = (i for start, stop in self.pieces for i in range(start, stop))
        return sum(-(-sum(self.part.of(block=i)) // self.samples) for i in places)

    @property
    def partial(self) -> int:
        """Numbers whose gradients each tensor-parallel worker has a part of: what acts on split tokens."""
        if not self.parallel.split_norms:
            return 0
        inside = f".{PLANS[self.model.family].experts}." if self.model.experts else None
        chosen = [p for p in self.part.sizes if p.axis is None and not (inside and inside in p.name)]
        if self.parallel.optimizer == 3:
            chosen = [p for p in chosen if p.place < 0]
        return sum(self.part.numbers[p.name] for p in chosen)

    @property
    def tied_across(self) -> int:
        """Numbers of an embedding that is the head of another stage, of which each has a gradient."""
        if self.parallel.pipeline == 1 or not self.model.tied or not (self.is_first or self.is_last):
            return 0
        return self.part.numbers[self.model.embedding]


@functools.cache
def even_cut(layers: int, parts: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the layers of each part, as many each as can be."""
    return cut([1.0] * layers, parts)


def padded(buckets: list[int], shares: int) -> int:
    """Returns how many numbers there are where each bucket is cut into equal shares."""
    return sum(-(-bucket // shares) * shares for bucket in buckets)
