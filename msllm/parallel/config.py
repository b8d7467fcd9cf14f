"""How a run is spread over workers, and whether that fits the model; known before any worker starts."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from msllm.errors import UserError, nearest

DEGREES = ("data", "tensor", "pipeline", "sequence")


@dataclasses.dataclass(kw_only=True)
class ParallelConfig:
    """How many ways each dimension of training is split.

    The workers are pipeline x data x sequence x tensor, from the outside in: neighbours share the tensors of one layer.
    Experts are spread over the data-parallel workers.

    Args:
        data: copies of the model, each with its own examples; 0 takes what the other degrees leave of the workers.
        tensor: workers that share each matrix (Shoeybi et al. 2019).
        pipeline: stages of consecutive layers (Huang et al. 2019).
        expert: data-parallel workers that share the experts of each layer (Lepikhin et al. 2021).
        sequence: workers that share the tokens of each example.
        optimizer: what the data-parallel workers share: 0 nothing, 1 the optimiser's states, 2 the gradients that are
            kept between micro-batches as well, 3 the parameters of blocks as well, but while a block runs, and all
            others between steps (Rajbhandari et al. 2020).
        attention: how workers that share tokens attend: ring passes keys and values around (Liu et al. 2023), heads
            exchanges tokens for heads (Jacobs et al. 2023).
        split_norms: the tensor-parallel workers share the tokens too, where a norm or a dropout acts on each token
            alone (Korthikanti et al. 2022).
        micro_batches: pieces of a worker's batch that go through the pipeline one after the other.
        schedule: in which order: gpipe, 1f1b (Narayanan et al. 2019) or interleaved (Narayanan et al. 2021).
        chunks: pieces of the model on each stage, for the interleaved schedule.
        cut: how layers are dealt out to stages: as many each, or of equal measured cost.
        recompute: keep only the input of each block and compute the rest again in the backward pass.
        mode: who spreads the model: explicit is msllm's own collectives (CPU workers and Ascend), auto is MindSpore's
            auto-parallel front end (Ascend).
        search: of the auto mode: none takes the layout as given, the others let MindSpore choose how operators are cut.
        servers: parameter servers: that many of the workers keep the parameters and update them, the others train (Li
            et al. 2014, "Scaling Distributed Machine Learning with the Parameter Server").
        staleness: 0 has the servers wait for the gradients of all who train: the step is that of data parallelism.
            Above 0, a gradient is applied as it comes, and whoever trains is at most so many steps ahead of the slowest
            (Ho et al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server").
    """

    data: int = 0
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    sequence: int = 1
    optimizer: Literal[0, 1, 2, 3] = 0
    attention: Literal["ring", "heads"] = "ring"
    split_norms: bool = False
    micro_batches: int = 1
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    chunks: int = 1
    cut: Literal["layers", "cost"] = "layers"
    recompute: bool = False
    mode: Literal["explicit", "auto"] = "explicit"
    search: Literal["none", "sharding_propagation", "recursive_programming", "dynamic_programming"] = "none"
    servers: int = 0
    staleness: int = 0

    @property
    def world(self) -> int:
        """The number of workers."""
        return math.prod(getattr(self, name) for name in DEGREES) + self.servers

    @property
    def model_degree(self) -> int:
        """Workers that hold one copy of the model together."""
        return self.tensor * self.pipeline * self.sequence

    @property
    def plain(self) -> bool:
        """Whether all who train have the whole model and do the same: any model can be trained so."""
        return dataclasses.replace(self, data=0, servers=0, staleness=0) == ParallelConfig()

    @property
    def length_multiple(self) -> int:
        """What the tokens of an example must be a multiple of."""
        tokens = self.sequence * (2 if self.sequence > 1 and self.attention == "ring" else 1)
        return tokens * (self.tensor if self.split_norms else 1)

    def for_workers(self, workers: int) -> "ParallelConfig":
        """Returns the same with ``data`` filled in.

        Raises:
            UserError: a value that no layout has; degrees that do not multiply to ``workers``; experts that the
                data-parallel workers cannot share.
        """
        self._check_values()
        if self.servers:
            return self._with_servers(workers)
        config, rest, others = self, self.model_degree, " x ".join(DEGREES[1:])
        if self.data == 0:
            if workers == 1 and rest > 1:
                raise UserError(
                    f"{others} = {self._product(DEGREES[1:])} = {rest}, and there is one worker; add --workers {rest}"
                )
            if workers % rest:
                raise UserError(
                    f"{workers} workers cannot be divided by {others} = {self._product(DEGREES[1:])} = {rest}; use "
                    f"{_nearest_multiples(workers, rest)} workers, or other degrees"
                )
            config = dataclasses.replace(self, data=workers // rest)
        elif self.world != workers:
            raise UserError(
                f"{' x '.join(DEGREES)} = {self._product(DEGREES)} = {self.world}, and there are {workers} workers; "
                f"use {self.world} workers"
                + (f" or parallel.data {workers // rest}" if workers % rest == 0 else ", or other degrees")
            )
        if config.data % self.expert:
            degrees = _one_of(_divisors(config.data), self.expert)
            raise UserError(
                f"parallel.expert = {self.expert} does not divide parallel.data = {config.data}: experts are spread "
                f"over the data-parallel workers; use an expert degree of {degrees}"
            )
        return config

    def _with_servers(self, workers: int) -> "ParallelConfig":
        if not self.plain:
            raise UserError(
                f"parallel.servers is {self.servers}, and those who train have the whole model each; leave out the "
                f"other parallel options, or servers"
            )
        trainers = workers - self.servers
        if trainers < 1 or self.data not in (0, trainers):
            raise UserError(
                f"parallel.servers is {self.servers}, and {max(trainers, 0)} of {workers} workers are left to train; "
                f"use {self.servers + max(self.data, 2)} workers"
            )
        return dataclasses.replace(self, data=trainers)

    def _check_values(self) -> None:
        for field in dataclasses.fields(self):
            value, known = getattr(self, field.name), get_args(field.type)
            if known and value not in known:
                raise UserError(
                    f"parallel.{field.name} is {value!r}{nearest(str(value), map(str, known))}, expected one of "
                    f"{', '.join(map(str, known))}; change it"
                )
        for name in (*DEGREES[1:], "expert", "micro_batches", "chunks"):
            if getattr(self, name) < 1:
                raise UserError(f"parallel.{name} is {getattr(self, name)}, expected 1 or more; leave it out for 1")
        if self.data < 0:
            raise UserError(f"parallel.data is {self.data}, expected 1 or more; leave it out for what is left")
        for name in ("servers", "staleness"):
            if getattr(self, name) < 0:
                raise UserError(f"parallel.{name} is {getattr(self, name)}, expected 0 or more; leave it out for 0")
        if self.staleness and not self.servers:
            raise UserError(
                f"parallel.staleness is {self.staleness}, and only parameter servers take stale gradients; add "
                f"--parallel.servers 1, or leave it out"
            )

    def check_training(self, optim: str, jit: bool) -> None:
        """Raises UserError where the options of training do not go with a layout that is not plain."""
        if self.mode == "auto":
            if optim != "adamw":
                raise UserError(f"optim is {optim}, and --parallel.mode auto has adamw alone; use --optim adamw")
            return
        if jit:
            raise UserError(
                "jit compiles whole models, and workers that share one need PyNative; leave out jit, or the parallel "
                "options"
            )
        if optim == "lamb" and (self.tensor > 1 or self.optimizer):
            raise UserError(
                f"optim lamb scales each matrix as a whole, and parallel.tensor {self.tensor}, parallel.optimizer "
                f"{self.optimizer} cut them; use --optim adamw, or neither of the two"
            )

    def check(
        self,
        heads: int,
        kv_heads: int,
        layers: int,
        inner: int,
        vocab_size: int | None = None,
        experts: int = 0,
        length: int | None = None,
        batch: int | None = None,
        attention_dropout: float = 0.0,
    ) -> None:
        """Raises UserError where the model or its batches cannot be divided so; ``for_workers`` comes first.

        Args:
            heads, kv_heads, layers, inner, vocab_size, experts: sizes of the model; ``inner`` is the feed-forward
                width, ``vocab_size`` None where it is not known yet, ``experts`` 0 for a model without.
            length: tokens of an example, where all have as many.
            batch: examples of a data-parallel worker in an optimiser step.
            attention_dropout: of the model.
        """
        self._check_mode(experts)
        self._check_tensor(heads, kv_heads, inner, vocab_size)
        self._check_pipeline(layers)
        self._check_experts(experts)
        self._check_optimizer()
        self._check_batches(length, batch)
        if self.sequence > 1 and self.attention == "ring" and attention_dropout > 0:
            raise UserError(
                f"the model drops out {attention_dropout:g} of its attention weights, which are never in one place in "
                f"a ring; use --parallel.attention heads, or a model with attention dropout 0"
            )

    def _check_mode(self, experts: int) -> None:
        """Whether MindSpore's auto-parallel, where it is asked for, has what else is asked for."""
        if self.mode == "explicit":
            if self.search != "none":
                raise UserError(
                    f"parallel.search is {self.search} and parallel.mode explicit: only MindSpore's auto-parallel "
                    f"searches; add --parallel.mode auto, or leave search out"
                )
            return
        lacking = {
            "sequence": self.sequence > 1,
            "expert": self.expert > 1,
            "split_norms": self.split_norms,
            "schedule": self.schedule != "1f1b",
            "cut": self.cut != "layers",
            "servers": self.servers > 0,
        }
        for name, asked in lacking.items():
            if asked:
                raise UserError(
                    f"parallel.{name} is {getattr(self, name)} and parallel.mode auto, which does not have it; leave "
                    f"it out, or use --parallel.mode explicit"
                )
        if experts:
            raise UserError(
                f"the model has {experts} experts, which get as many tokens as the router says, and auto-parallel cuts "
                f"equal parts; use --parallel.mode explicit"
            )
        if self.optimizer >= 2 and self.micro_batches > 1:
            raise UserError(
                f"parallel.optimizer is {self.optimizer} and micro_batches {self.micro_batches}: MindSpore shares "
                f"gradients between micro-batches only where it inlines cells late; use --parallel.optimizer 1"
            )
        if self.pipeline > self.micro_batches:
            raise UserError(
                f"parallel.pipeline is {self.pipeline} and micro_batches {self.micro_batches}: MindSpore wants as many "
                f"micro-batches as stages; use --parallel.micro_batches {self.pipeline}"
            )
        if self.search != "none" and self.pipeline > 1:
            raise UserError(
                f"parallel.search is {self.search} and parallel.pipeline {self.pipeline}: a search cuts operators, not "
                f"layers; use --parallel.pipeline 1"
            )

    def _check_tensor(self, heads: int, kv_heads: int, inner: int, vocab_size: int | None) -> None:
        """Whether each worker gets whole heads, and something of every matrix."""
        fit = math.gcd(heads, kv_heads, inner)
        degrees = _one_of([d for d in _divisors(fit) if vocab_size is None or d <= vocab_size], self.tensor)
        for size, what in ((heads, "attention heads"), (kv_heads, "key-value heads"), (inner, "feed-forward units")):
            if size % self.tensor:
                raise UserError(
                    f"parallel.tensor = {self.tensor} does not divide the {size} {what}, {size % self.tensor} would be "
                    f"left over; use {degrees}"
                )
        if vocab_size is not None and self.tensor > vocab_size:
            raise UserError(
                f"parallel.tensor = {self.tensor} is more than the {vocab_size} tokens of the vocabulary; use {degrees}"
            )
        if self.split_norms and self.tensor == 1:
            raise UserError(
                "parallel.split_norms is set and parallel.tensor is 1: there is nobody to share with; leave it out"
            )
        if self.sequence > 1 and self.attention == "heads":
            sequences = _one_of(_divisors(math.gcd(heads, kv_heads) // self.tensor), self.sequence)
            for size, what in ((heads, "attention heads"), (kv_heads, "key-value heads")):
                if size % (self.tensor * self.sequence):
                    raise UserError(
                        f"parallel.tensor x sequence = {self.tensor} x {self.sequence} do not divide the {size} "
                        f"{what}, as attention heads needs; use --parallel.attention ring, or a sequence of {sequences}"
                    )

    def _check_pipeline(self, layers: int) -> None:
        """Whether each stage gets layers, and the schedule what it needs."""
        parts = self.pipeline * self.chunks
        if parts > layers:
            raise UserError(
                f"{layers} layers cannot fill parallel.pipeline x chunks = {self.pipeline} x {self.chunks} = {parts} "
                f"stages; use at most {layers} of them"
            )
        if self.schedule != "interleaved":
            if self.chunks > 1:
                raise UserError(
                    f"parallel.chunks is {self.chunks} and the schedule is {self.schedule}; leave chunks out, or use "
                    f"--parallel.schedule interleaved"
                )
            return
        if self.chunks < 2 or self.pipeline < 2:
            raise UserError(
                f"the interleaved schedule needs parallel.chunks and pipeline of 2 or more, they are {self.chunks} "
                f"and {self.pipeline}; use more, or --parallel.schedule 1f1b{' and chunks 1' * (self.chunks > 1)}"
            )
        if self.micro_batches % self.pipeline:
            raise UserError(
                f"the interleaved schedule needs a multiple of parallel.pipeline = {self.pipeline} micro_batches, "
                f"not {self.micro_batches}; use {_nearest_multiples(self.micro_batches, self.pipeline)}"
            )

    def _check_experts(self, experts: int) -> None:
        """Whether each worker gets as many; that data-parallel workers are enough is known from for_workers."""
        if self.expert == 1:
            return
        if not experts:
            raise UserError(f"parallel.expert is {self.expert} and the model has no experts; leave it out")
        if experts % self.expert:
            raise UserError(
                f"parallel.expert = {self.expert} does not divide the {experts} experts, {experts % self.expert} would "
                f"be left over; use {_one_of(_divisors(math.gcd(experts, self.data)), self.expert)}"
            )

    def _check_optimizer(self) -> None:
        """Whether there is somebody to share with, and it can be done step by step."""
        if self.optimizer and self.data * self.sequence == 1:
            raise UserError(
                f"parallel.optimizer is {self.optimizer}, parallel.data and parallel.sequence are 1: there is nobody "
                f"to share with; use 0"
            )
        if self.optimizer >= 2 and self.pipeline > 1:
            raise UserError(
                f"parallel.optimizer is {self.optimizer} and parallel.pipeline {self.pipeline}: each micro-batch would "
                f"move all gradients; use --parallel.optimizer 1"
            )
        if self.optimizer == 3 and self.expert > 1:
            raise UserError(
                f"parallel.optimizer is 3 and parallel.expert {self.expert}: the experts of a block have other owners "
                f"than the rest of it; use --parallel.optimizer 2"
            )

    def _check_batches(self, length: int | None, batch: int | None) -> None:
        """Whether examples can be cut along their tokens, and batches into micro-batches."""
        if length is not None and length % self.length_multiple:
            names = ["parallel.sequence"] * (self.sequence > 1) + ["parallel.split_norms"] * self.split_norms
            raise UserError(
                f"examples of {length} tokens cannot be split into {self.length_multiple} pieces, as "
                f"{' with '.join(names)} needs; use a length of {_nearest_multiples(length, self.length_multiple)}"
            )
        if batch is not None and batch % self.micro_batches:
            step = self.pipeline if self.schedule == "interleaved" else 1
            counts = [d for d in _divisors(batch) if d % step == 0]
            raise UserError(
                f"a batch of {batch} examples cannot be cut into {self.micro_batches} micro-batches; use a batch of "
                f"{_nearest_multiples(batch, self.micro_batches)}"
                + (f", or parallel.micro_batches of {_one_of(counts, self.micro_batches)}" if counts else "")
            )

    def _product(self, names) -> str:
        return " x ".join(str(getattr(self, name)) for name in names)

    def __str__(self) -> str:
        """The degrees above 1 in short, such as "dp2 tp2 zero1"."""
        short = {"data": "dp", "sequence": "sp", "tensor": "tp", "pipeline": "pp", "expert": "ep"}
        words = [f"{short[n]}{getattr(self, n)}" for n in short if getattr(self, n) > 1]
        words += [f"{self.servers} server{'s' * (self.servers > 1)}"] if self.servers else []
        words += [f"staleness {self.staleness}"] if self.staleness else []
        return " ".join(words + ([f"zero{self.optimizer}"] if self.optimizer else [])) or "one worker"


def _divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]


def _one_of(values: Sequence[int], near: int, most: int = 4) -> str:
    """The values nearest to one that was wrong."""
    *others, last = map(str, sorted(sorted(values, key=lambda value: abs(value - near))[:most]))
    return f"{', '.join(others)} or {last}" if others else last


def _nearest_multiples(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else str(factor)
