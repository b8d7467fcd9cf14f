"""How a run is spread over workers, and whether that fits the model; known before any worker starts."""

import dataclasses
import math
from typing import Literal

from msllm.errors import UserError

DEGREES = ("data", "tensor", "pipeline", "sequence")


@dataclasses.dataclass(kw_only=True)
class ParallelConfig:
    """How many ways each dimension of training is split.

    The workers are data x sequence x tensor x pipeline, in this order from the outside for pipeline, data, sequence,
    tensor: neighbours share the tensors of one layer. Experts are spread over the data-parallel workers.

    Args:
        data: copies of the model, each with its own examples; 0 takes what the other degrees leave of the workers.
        tensor: workers that share each matrix (Shoeybi et al. 2019).
        pipeline: stages of consecutive layers (Huang et al. 2019).
        expert: data-parallel workers that share the experts of each layer (Lepikhin et al. 2021).
        sequence: workers that share the tokens of each example.
        optimizer: what the data-parallel workers share: 0 nothing, 1 the optimiser's states, 2 the gradients as well,
            3 the parameters as well (Rajbhandari et al. 2020).
        attention: how workers that share tokens attend: ring passes keys and values around (Liu et al. 2023), heads
            exchanges tokens for heads (Jacobs et al. 2023).
        split_norms: the tensor-parallel workers share the tokens too, where a layer norm or a dropout acts on each token
            alone (Korthikanti et al. 2022).
        micro_batches: pieces of a worker's batch that go through the pipeline one after the other.
        schedule: in which order: gpipe, 1f1b (Narayanan et al. 2019) or interleaved (Narayanan et al. 2021).
        chunks: pieces of the model on each stage, for the interleaved schedule.
        cut: how layers are dealt out to stages: as many each, or of equal measured cost.
        recompute: keep only the input of each block and compute the rest again in the backward pass.
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

    @property
    def world(self) -> int:
        """The number of workers."""
        return math.prod(getattr(self, name) for name in DEGREES)

    @property
    def model_degree(self) -> int:
        """Workers that hold one copy of the model together."""
        return self.tensor * self.pipeline * self.sequence

    def for_workers(self, workers: int) -> "ParallelConfig":
        """Returns the same with ``data`` filled in; UserError where the degrees do not multiply to ``workers``."""
        for name in (*DEGREES[1:], "expert", "micro_batches", "chunks"):
            if getattr(self, name) < 1:
                raise UserError(f"parallel.{name} is {getattr(self, name)}, expected 1 or more")
        rest, others = self.model_degree, " x ".join(DEGREES[1:])
        if self.data < 0:
            raise UserError(f"parallel.data is {self.data}, expected 0 (what is left) or more")
        if self.data == 0:
            if workers % rest:
                raise UserError(
                    f"{workers} workers cannot be divided by {others} = {self._product(DEGREES[1:])} = {rest}; use "
                    f"{_nearest_multiples(workers, rest)} workers, or other degrees"
                )
            return dataclasses.replace(self, data=workers // rest)
        if self.world != workers:
            raise UserError(
                f"{' x '.join(DEGREES)} = {self._product(DEGREES)} = {self.world}, and there are {workers} workers; "
                f"use {self.world} workers"
                + (f" or parallel.data {workers // rest}" if workers % rest == 0 else ", or other degrees")
            )
        return self

    def check(
        self,
        heads: int,
        kv_heads: int,
        layers: int,
        inner: int,
        vocab_size: int,
        experts: int = 0,
        length: int | None = None,
        batch: int | None = None,
    ) -> None:
        """Raises UserError where the model or its batches cannot be divided so.

        Args:
            heads, kv_heads, layers, inner, vocab_size, experts: sizes of the model; ``inner`` is the feed-forward
                width, ``experts`` 0 for a model without.
            length: tokens of an example, where all have as many.
            batch: examples of a data-parallel worker in an optimiser step.
        """
        for size, what in ((heads, "attention heads"), (kv_heads, "key-value heads"), (inner, "inner width")):
            _divides("tensor", self.tensor, size, what)
        if self.sequence > 1 and self.attention == "heads":
            for size, what in ((heads, "attention heads"), (kv_heads, "key-value heads")):
                if size % (self.tensor * self.sequence):
                    raise UserError(
                        f"parallel.tensor x sequence = {self.tensor} x {self.sequence} do not divide the {size} {what}, "
                        f"as attention heads needs; use --parallel.attention ring, or a sequence of "
                        f"{_divisors(size // self.tensor)}"
                    )
        parts = self.pipeline * self.chunks
        if parts > layers:
            raise UserError(
                f"{layers} layers cannot fill parallel.pipeline x chunks = {self.pipeline} x {self.chunks} = {parts} "
                f"stages; use at most {layers} of them"
            )
        if self.schedule == "interleaved":
            if self.chunks < 2 or self.pipeline < 2:
                raise UserError(
                    f"the interleaved schedule needs parallel.chunks and pipeline of 2 or more, they are {self.chunks} "
                    f"and {self.pipeline}; use --parallel.schedule 1f1b, or more"
                )
            if self.micro_batches % self.pipeline:
                raise UserError(
                    f"the interleaved schedule needs a multiple of parallel.pipeline = {self.pipeline} micro_batches, not "
                    f"{self.micro_batches}; use {_nearest_multiples(self.micro_batches, self.pipeline)}"
                )
        elif self.chunks > 1:
            raise UserError(
                f"parallel.chunks is {self.chunks} and the schedule is {self.schedule}; chunks belong to "
                f"--parallel.schedule interleaved"
            )
        if self.expert > 1:
            if not experts:
                raise UserError(f"parallel.expert is {self.expert} and the model has no experts; leave it out")
            _divides("expert", self.expert, experts, "experts")
            if self.data % self.expert:
                raise UserError(
                    f"parallel.expert = {self.expert} does not divide parallel.data = {self.data}: experts are spread "
                    f"over the data-parallel workers; use an expert degree of {_divisors(self.data)}"
                )
        if self.optimizer and self.data == 1:
            raise UserError(
                f"parallel.optimizer is {self.optimizer} and parallel.data 1: there is nobody to share with; use 0"
            )
        if self.optimizer >= 2 and self.pipeline > 1:
            raise UserError(
                f"parallel.optimizer is {self.optimizer} and parallel.pipeline {self.pipeline}: each micro-batch would "
                f"move all gradients; use --parallel.optimizer 1"
            )
        if self.split_norms and self.tensor == 1:
            raise UserError("parallel.split_norms is set and parallel.tensor is 1: there is nobody to share with")
        shares = self.sequence * (self.tensor if self.split_norms else 1)
        if length is not None and length % shares:
            raise UserError(
                f"examples of {length} tokens cannot be split among {shares} workers (parallel.sequence"
                f"{' x tensor' if self.split_norms else ''}); use a length of {_nearest_multiples(length, shares)}"
            )
        if batch is not None and batch % self.micro_batches:
            raise UserError(
                f"a batch of {batch} examples cannot be cut into {self.micro_batches} micro-batches; use a batch of "
                f"{_nearest_multiples(batch, self.micro_batches)}, or parallel.micro_batches of {_divisors(batch)}"
            )

    def _product(self, names) -> str:
        return " x ".join(str(getattr(self, name)) for name in names)

    def __str__(self) -> str:
        """The degrees above 1 in short, such as "dp2 tp2 zero1"."""
        short = {"data": "dp", "sequence": "sp", "tensor": "tp", "pipeline": "pp", "expert": "ep"}
        words = [f"{short[n]}{getattr(self, n)}" for n in short if getattr(self, n) > 1]
        return " ".join(words + ([f"zero{self.optimizer}"] if self.optimizer else [])) or "one worker"


def _divides(name: str, degree: int, size: int, what: str) -> None:
    if size % degree:
        raise UserError(
            f"parallel.{name} = {degree} does not divide the {size} {what}, {size % degree} would be left over; use "
            f"{_divisors(size)}"
        )


def _divisors(size: int, most: int = 6) -> str:
    found = [str(d) for d in range(1, size + 1) if size % d == 0][:most]
    return f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else found[0]


def _nearest_multiples(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else str(factor)
