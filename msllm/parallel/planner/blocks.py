"""The operators of each family's blocks, and of what lies before and after them, for ``tape``.

Shapes: N a worker's tokens of a micro-batch (n those of its residual stream, N / tensor with split norms), D width,
H heads, K key-value heads, C head width, F inner width, V vocabulary, E experts; H, K, F and V are a worker's share.
Operators have the names of ``msllm.kernels``.
"""

from collections.abc import Callable

from msllm.parallel.planner.sizes import FLOAT32, Held, Numbers
from msllm.parallel.planner.tape import Footprint, Op, footprint

_STATISTIC = 4  # bytes: means, scales and log-sum-exps are float32
_SUMMED = 8  # those that a ring adds up are float64


class Pieces:
    """The pieces of a model as one worker runs a micro-batch through them: block, embedding and head.

    Args:
        held: what the worker holds.
        rows, length: B and T of the micro-batch; T counts all tokens of an example.
        numbers: bytes of a number.

    Attributes:
        stream: bytes of the residual stream, what goes from block to block and from stage to stage.
    """

    def __init__(self, held: Held, rows: int, length: int, numbers: Numbers = FLOAT32):
        parallel, model = held.parallel, held.model
        self.held, self.model, self.numbers, self.parallel = held, model, numbers, parallel
        self.rows, self.length = rows, length
        self.tokens = rows * length // parallel.sequence
        self.stream_tokens = self.tokens // parallel.tensor if parallel.split_norms else self.tokens
        self.stream = self.stream_tokens * model.width * numbers.compute
        self.whole = self.tokens * model.width * numbers.compute
        self.vocabulary = model.parameters[0].local(parallel.tensor, held.tensor_index)[0]
        # What footprints depend on: many layouts of a search have the same.
        self._key = (rows, length, numbers, parallel.mode, parallel.tensor, parallel.split_norms, self.vocabulary)
        self._key += (parallel.sequence, parallel.attention, parallel.expert, parallel.pipeline > 1, held.is_last)

    def _footprint(self, make: Callable[..., Footprint], *options) -> Footprint:
        known, key = self.model.footprints, (make.__name__, options, self._key)
        if key not in known:
            known[key] = make(self, *options)
        return known[key]

    def block(self, first: bool = False, alone: bool = False) -> Footprint:
        """Returns what a block takes.

        Args:
            first: the first one of the model gets no update beside the residual stream.
            alone: it is run by itself, so that its two outputs have a gradient each.
        """
        return self._footprint(_block, first, alone)

    def embedding(self) -> Footprint:
        """Returns what comes before the blocks."""
        return self._footprint(_embedding)

    def head(self) -> Footprint:
        """Returns what comes after the blocks, the loss included."""
        return self._footprint(_head)

    @property
    def explicit(self) -> bool:
        """Whether msllm's own collectives run the layout, operator by operator."""
        return self.parallel.mode == "explicit"


def _block(pieces: Pieces, first: bool, alone: bool) -> Footprint:
    ops = _Ops(pieces)
    given = {"x": pieces.stream} | ({} if first else {"update": pieces.stream})
    if pieces.model.family == "openai-gpt":
        # x, a norm's output, is kept by the first product and not, as a sum is, by the norm that made it.
        ops.add("input", (), x=pieces.stream)
        ops.attention("x", "attention")
        ops.norm("x", "attention", "sum1", "y")
        ops.mlp("y", "update")
        ops.norm("y", "update", "sum2", "out")
        return footprint(ops.list, {}, [["out"]])
    after_norm = getattr(pieces.model.config, "apply_residual_connection_post_layernorm", False)
    ops.norm("x", None if first else "update", "sum1", "y1")
    ops.attention("y1", "attention")
    ops.norm("y1" if after_norm else "x" if first else "sum1", "attention", "sum2", "y2")
    (ops.experts if pieces.model.experts else ops.mlp)("y2", "update2")
    outputs = ["y2" if after_norm else "sum2", "update2"]
    return footprint(ops.list, given, [[name] for name in outputs] if alone else [outputs])


def _embedding(pieces: Pieces) -> Footprint:
    ops, model, parallel = _Ops(pieces), pieces.model, pieces.parallel
    table = pieces.vocabulary * model.width * pieces.numbers.gradients
    tied_here = model.tied and pieces.explicit and parallel.tensor == 1 and parallel.pipeline == 1
    # The head's gradient of a table that both use is added to row by row; else there are two, and their sum.
    twice = model.tied and not tied_here and pieces.held.is_last
    shape = {"weights": 0 if tied_here else table, "back_scratch": table if twice else 0}
    ops.add("embedding", (), found=pieces.whole, **shape)
    x = ops.leave("found") if parallel.tensor > 1 else "found"
    positions = sum(p.numbers for p in model.parameters[1:2] if model.family in ("gpt2", "openai-gpt"))
    if positions:
        ops.add("embedding", (x,), "same", weights=positions * pieces.numbers.gradients, placed=pieces.stream)
        x = "placed"
    if model.family == "bloom":
        ops.norm(x, None, "", "normed")
        x = "normed"
    if model.dropout:
        ops.add("dropout", (x,), dropped=pieces.stream)
        x = "dropped"
    if model.family in ("llama", "mixtral"):  # cosines and sines, of every block
        ops.add("rotary_angles", (), statistics=pieces.length // parallel.sequence * model.head_width * _STATISTIC)
    return footprint(ops.list, {}, [[x]])


def _head(pieces: Pieces) -> Footprint:
    ops, model, parallel = _Ops(pieces), pieces.model, pieces.parallel
    logits = pieces.tokens * pieces.vocabulary * pieces.numbers.logits
    x, given = "x", {"x": pieces.stream, "update": pieces.stream}
    if model.family == "openai-gpt":
        ops.add("input", (), x=pieces.stream)
        given = {}
    else:
        ops.norm("x", "update", "sum", "y")
        x = "y"
    ops.linear(ops.enter(x), "logits", model.width, pieces.vocabulary, size=logits)
    if parallel.tensor > 1:
        # The label's logit is read out of the flat logits; its gradient is as large as they, and is reshaped.
        ops.add("label", ("logits",), back_scratch=logits, label=pieces.tokens * _STATISTIC)
    statistics = pieces.tokens * _STATISTIC
    ops.add("cross_entropy", ("logits",), saves=("logits",), statistics=statistics, losses=statistics)
    return footprint(ops.list, given, [["losses"], *([["label"]] if parallel.tensor > 1 else [])])


class _Ops:
    """A list of operators that grows."""

    def __init__(self, pieces: Pieces):
        self.pieces, self.model, self.parallel, self.numbers = pieces, pieces.model, pieces.parallel, pieces.numbers
        self.list: list[Op] = []
        self.tensor, self.split = self.parallel.tensor, self.parallel.split_norms

    def add(
        self, name, inputs, gradient="each", saves=(), statistics=0, weights=0, scratch=0, back_scratch=0, **outputs
    ) -> None:
        """Appends an operator; ``outputs`` are its tensors and their bytes."""
        shape = {"statistics": statistics, "weights": weights, "scratch": scratch, "back_scratch": back_scratch}
        self.list.append(Op(name, tuple(inputs), tuple(outputs.items()), saves, gradient=gradient, **shape))

    def norm(self, x: str, update: str | None, total: str, out: str) -> None:
        """A norm of x, or of the sum of two."""
        p, kind = self.pieces, "rms" if self.model.family in ("llama", "mixtral") else "layer"
        per_token = 1 if kind == "rms" else 2
        shape = {
            "statistics": per_token * p.stream_tokens * _STATISTIC,
            "weights": per_token * self.model.width * self.numbers.gradients,
        }
        if update is None:
            self.add(f"{kind}_norm", (x,), saves=(x,), **shape, **{out: p.stream})
        else:
            sums = {total: p.stream, out: p.stream}
            self.add(f"add_{kind}_norm", (x, update), "shared", saves=(total,), **shape, **sums)

    def enter(self, x: str) -> str:
        """What the workers of a tensor group need of x: all its tokens, and the sum of their gradients."""
        if self.tensor == 1:
            return x
        p, name = self.pieces, f"all {x}"
        if not self.split:
            self.list.append(Op("copy", (x,), ((name, p.whole),), view=True))
            return name
        self.add("all_gather", (x,), scratch=p.whole, back_scratch=self._scatter_scratch, **{name: p.whole})
        return name

    @property
    def _scatter_scratch(self) -> int:
        """What a reduce-scatter of split tokens takes: the shares lie apart in what is sent; what comes, and sums."""
        share = self.pieces.whole // self.tensor
        return self.pieces.whole + (self.tensor - 1) * share + (share if self.tensor > 2 else 0)

    def leave(self, x: str) -> str:
        """The sum over the workers of a tensor group."""
        name, p = f"sum {x}", self.pieces
        if self.split:  # backward, what the workers have is gathered and then put together
            shape = {"scratch": self._scatter_scratch, "back_scratch": p.whole}
            self.add("reduce_scatter", (x,), **shape, **{name: p.stream})
        else:
            self.add("all_reduce", (x,), "same", **{name: p.stream})
        return name

    def linear(self, x: str, out: str, inputs: int, outputs: int, size: int | None = None, bias: bool = False) -> None:
        """A product with a matrix (outputs, inputs), a worker's share of it."""
        p = self.pieces
        size = p.tokens * outputs * self.numbers.compute if size is None else size
        weights = (inputs * outputs + outputs * bias) * self.numbers.gradients
        self.add("linear", (x,), saves=(x,), weights=weights, **{out: size})

    def row_linear(self, x: str, out: str, inputs: int) -> None:
        """The product that ends a part of a block, and a dropout behind it."""
        p, D = self.pieces, self.model.width
        raw = out if self.tensor == 1 and not self.model.dropout else f"{out} product"
        bias = self.model.family not in ("llama", "mixtral")
        self.linear(x, raw, inputs, D, bias=bias and self.tensor == 1)
        if self.tensor > 1:
            raw = self.leave(raw)
            if bias:
                self.add("add", (raw,), "same", weights=D * self.numbers.gradients, **{f"{out} biased": p.stream})
                raw = f"{out} biased"
        if self.model.dropout:
            self.add("dropout", (raw,), **{out: p.stream})
        elif raw != out:
            self.list.append(Op("rename", (raw,), ((out, p.stream),), gradient="same", view=True))

    def attention(self, y: str, out: str) -> None:
        """From a norm's output to the residual stream."""
        p, model, D = self.pieces, self.model, self.model.width
        heads, kv_heads = model.heads // self.tensor, model.kv_heads // self.tensor
        number, C = p.tokens * self.numbers.compute, model.head_width
        y = self.enter(y)
        ring = self.parallel.sequence > 1 and self.parallel.attention == "ring"
        lse = heads * p.tokens * (_SUMMED if ring else _STATISTIC)
        if model.family in ("llama", "mixtral"):
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                self.linear(y, f"{name} product", D, count * C)
            self.add("rotary", ("q product",), q=number * heads * C)
            self.add("rotary", ("k product",), k=number * kv_heads * C)
            inputs = ("q", "k", "v product")
        else:
            self.linear(y, "qkv", D, 3 * heads * C, bias=True)
            inputs = ("qkv",)
        seen, scratch = number * heads * C, 0
        if not p.explicit and (model.family == "bloom" or model.known["attention_dropout"] > 0):
            # Ascend's fused attention takes no ALiBi and draws other masks: the graph has all weights, in float32 for
            # the softmax and once more for the product, and the gradients of both.
            lse = scratch = p.rows * heads * p.length**2 * (4 + self.numbers.compute)
        if self.parallel.sequence > 1 and self.parallel.attention == "heads":
            kinds = (("q", heads), ("k", kv_heads), ("v", kv_heads))
            self.add("to_heads", inputs, **{f"{name} of heads": number * count * C for name, count in kinds})
            inputs = tuple(f"{name} of heads" for name, _ in kinds)
            self.add("attention", inputs, saves=(*inputs, "seen of heads"), statistics=lse, **{"seen of heads": seen})
            self.add("to_tokens", ("seen of heads",), seen=seen)
        else:
            shape = {"statistics": lse, "back_scratch": scratch}
            self.add("attention", inputs, saves=(*inputs, "seen"), **shape, seen=seen)
        self.row_linear("seen", out, heads * C)

    def mlp(self, y: str, out: str) -> None:
        """The feed-forward layer of a block."""
        p, D, F = self.pieces, self.model.width, self.model.inner // self.tensor
        y, inner = self.enter(y), p.tokens * F * self.numbers.compute
        if self.model.family in ("llama", "mixtral"):
            self.linear(y, "gate", D, F)
            self.linear(y, "up", D, F)
            self.add("swiglu", ("gate", "up"), saves=("gate", "up"), active=inner)
        else:  # backward, the gradient of the product comes before those of what it was made of
            saves, weights = (y, "product"), (D * F + F) * self.numbers.gradients
            made = {"product": inner, "active": inner}
            self.add("linear_gelu", (y,), saves=saves, weights=weights, back_scratch=inner, **made)
        self.row_linear("active", out, F)

    def experts(self, y: str, out: str) -> None:
        """The mixture of experts of a block; as many token copies go to each expert."""
        p, model, D, F = self.pieces, self.model, self.model.width, self.model.inner // self.tensor
        if self.split:  # all tokens for the router
            y = self.enter(y)
        copies = p.tokens * model.top_k
        routed = copies * D * self.numbers.compute
        inner = copies * F * self.numbers.compute
        local = model.experts // self.parallel.expert
        self.linear(y, "router", D, model.experts)
        self.add("softmax", ("router",), saves=("router",), weighed=copies * self.numbers.compute)
        self.add("dispatch", (y,), sorted=routed)
        x = "sorted"
        if self.parallel.expert > 1:
            self.add("all_to_all", ("sorted",), arrived=routed)
            self.add("by_expert", ("arrived",), mine=routed)
            x = "mine"
        if local > 1:
            self.add("split", (x,), parts=routed)
            x = "parts"
        matrix = D * F * local * self.numbers.gradients
        for name in ("gate", "up"):
            self.add("linear", (x,), saves=(x,), weights=matrix, **{name: inner})
        self.add("swiglu", ("gate", "up"), saves=("gate", "up"), active=inner)
        self.add("linear", ("active",), saves=("active",), weights=matrix, done=routed)
        x = "done"
        if self.tensor > 1:
            self.add("all_reduce", ("done",), "same", **{"sum done": routed})
            x = "sum done"
        if local > 1:
            self.add("concat", (x,), joined=routed)
            x = "joined"
        if self.parallel.expert > 1:
            self.add("back", (x,), back=routed)
            self.add("all_to_all", ("back",), returned=routed)
            x = "returned"
        self.add("gather", (x,), gathered=routed)
        whole = p.whole
        self.add("combine", ("gathered", "weighed"), saves=("gathered", "weighed"), **{f"{out} whole": whole})
        if self.split:
            self.add("split", (f"{out} whole",), **{out: p.stream})
        else:
            self.list.append(Op("rename", (f"{out} whole",), ((out, whole),), gradient="same", view=True))
