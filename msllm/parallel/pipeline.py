"""A model cut into stages of consecutive layers, each on a worker, and micro-batches that go through them.

A stage keeps the input of each micro-batch, and computes its layers again in the backward pass (Huang et al. 2019,
section 2.3): MindSpore's record of a forward pass can only be used in the opposite order, last pass first, and the
schedules need the first one first. The last stage computes once.
"""

import dataclasses
import time
from collections import deque

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from msllm import kernels
from msllm.layers import positions, run_blocks
from msllm.parallel.comm import Group
from msllm.parallel.plans import Plan
from msllm.parallel.schedule import FORWARD, Work, order


@dataclasses.dataclass(frozen=True)
class Event:
    """A piece of work as it was done, for pictures: seconds since the epoch, waiting left out."""

    work: Work
    start: float
    stop: float


class Absent(nn.Cell):
    """A layer that another worker has."""


class Stage:
    """What one worker has of a model, and how to run it.

    Args:
        model: a CausalLM; what other workers have is taken out of it.
        plan: of its family.
        bounds: (start, stop) of the layers of all parts, chunk by chunk: part c * stages + s is chunk c of stage s.
        group: the stages.
    """

    def __init__(self, model, plan: Plan, bounds: list[tuple[int, int]], group: Group):
        self.model, self.group, self.parts, self.bounds = model, group, len(bounds), bounds
        self.blocks = getattr(model.body, plan.blocks)
        self.pieces = bounds[group.index :: group.size]
        mine = {i for start, stop in self.pieces for i in range(start, stop)}
        for i in range(len(self.blocks)):
            if i not in mine:
                self.blocks[i] = Absent()
        tied = model.embedding if model.tied else None
        for name, cell in list(model.body.name_cells().items()):
            here = self.is_last if name in plan.last else self.is_first or (self.is_last and cell is tied)
            if cell is not self.blocks and not here and any(True for _ in cell.get_parameters()):
                setattr(model.body, name, Absent())
        if not model.tied and not self.is_last:
            model.lm_head = Absent()
        self.last_cells = [getattr(model.body, name) for name in plan.last]
        self.last_cells += [] if model.tied else [model.lm_head]
        self.first_cells = [
            cell for cell in model.body.name_cells().values() if cell is not self.blocks and cell not in self.last_cells
        ]

    @property
    def is_first(self) -> bool:
        return self.group.index == 0

    @property
    def is_last(self) -> bool:
        return self.group.index == self.group.size - 1

    def part(self, chunk: int) -> int:
        """The number of a chunk among the parts of the model."""
        return chunk * self.group.size + self.group.index

    def parameters(self, chunk: int) -> list:
        """Those that a pass through a chunk uses."""
        cells = [self.blocks[i] for i in range(*self.pieces[chunk])]
        if self.part(chunk) == 0:
            cells += self.first_cells
        if self.part(chunk) == self.parts - 1:
            cells += [*self.last_cells, *([self.model.embedding] if self.model.tied else [])]
        return list({id(p): p for cell in cells for p in cell.trainable_params()}.values())

    def run(self, chunk: int, x, tensors: dict) -> Tensor:
        """One pass: the residual stream (B, T, D) before the chunk, None for the first part, to that after it.

        The last part gives what the head gets.
        """
        body, T = self.model.body, tensors["input_ids"].shape[1]
        place = tensors.get("position_ids")
        place = positions(T) if place is None else place
        if x is None:
            x = body.embed(tensors["input_ids"], place)
        start, stop = self.pieces[chunk]
        rest = body.between(place, T) if hasattr(body, "between") else {}
        blocks = [self.blocks[i] for i in range(start, stop)]
        x, update = run_blocks(blocks, x, tensors.get("attention_mask"), tensors.get("row_start"), None, **rest)
        if self.part(chunk) == self.parts - 1:
            return body.finish(x, update)
        return x if update is None else x + update


class _Layers:
    """One chunk of a stage as an objective sees a model."""

    def __init__(self, stage: Stage, chunk: int):
        self._stage, self._chunk = stage, chunk

    def cells_and_names(self):
        for i in range(*self._stage.pieces[self._chunk]):
            yield from self._stage.blocks[i].cells_and_names()

    def __getattr__(self, name):
        return getattr(self._stage.model, name)


class _Finished(_Layers):
    """The last chunk: what it is called with is known, and the layers below have run."""

    def __init__(self, stage: Stage, x, tensors: dict):
        super().__init__(stage, len(stage.pieces) - 1)
        self._x, self._tensors = x, tensors

    def __call__(self, *ignored):
        return self._stage.model.head(self._stage.run(self._chunk, self._x, self._tensors))


class Pipeline:
    """Runs micro-batches through the stages.

    Args:
        stage: this worker's.
        objective: its loss belongs to the last stage.
        schedule: see schedule.order.
        width: D.
        length_share: of the tokens of a batch, each worker has 1/length_share in what goes from stage to stage.

    Attributes:
        events: what was done in the last step, in order.
    """

    def __init__(self, stage: Stage, objective, schedule: str, width: int, length_share: int = 1):
        self.stage, self.objective, self.schedule, self.width = stage, objective, schedule, width
        self.length_share = length_share
        self.events: list[Event] = []
        self.weights = [ParameterTuple(stage.parameters(c)) for c in range(len(stage.pieces))]

    def step(self, batches: list[dict], scale: Tensor, collect) -> np.ndarray:
        """Runs forward and backward passes of all micro-batches.

        Args:
            batches: the tensors of each.
            scale: what the terms are multiplied by, () or (K,).
            collect: (gradients by parameter name) -> None, called after each backward pass.

        Returns:
            The sums of the terms that this stage has: (K,).
        """
        self.events, kept, sent = [], {}, deque()
        terms = np.zeros(max(1, scale.size))
        inbox = _Inbox(self, [self._shape(tensors) for tensors in batches])
        for work in order(self.schedule, self.stage.group.size, self.stage.group.index, len(batches), self._chunks):
            tensors, key = batches[work.micro_batch], (work.chunk, work.micro_batch)
            part = self.stage.part(work.chunk)
            if work.kind == FORWARD:
                x = None if part == 0 else inbox.receive(part, work)
                start = time.time()
                kept[key] = x, kernels.get_rng_state()
                if part < self.stage.parts - 1:
                    out = self.stage.run(work.chunk, x, tensors)
                    self._send(out, part + 1, sent)
            else:
                dout = None if part == self.stage.parts - 1 else inbox.receive(part, work)
                start = time.time()
                values, dx, grads = self._backward(work.chunk, *kept.pop(key), dout, tensors, scale)
                terms = terms + values
                collect({p.name: g for p, g in zip(self.weights[work.chunk], grads, strict=True)})
                if part > 0:
                    self._send(dx, part - 1, sent)
                del dx, grads  # else they live until the next backward pass has its own
            self.events.append(Event(work, start, time.time()))
        for wait in sent:
            wait()
        return terms

    @property
    def _chunks(self) -> int:
        return len(self.stage.pieces)

    def _shape(self, tensors) -> tuple[int, int, int]:
        B, T = tensors["input_ids"].shape
        return B, T // self.length_share, self.width

    def _send(self, tensor: Tensor, part: int, sent: deque) -> None:
        """Sends to a part; messages that were sent long ago, and have arrived, are let go."""
        sent.append(self.stage.group.send_soon(tensor, part % self.stage.group.size))
        # No schedule has more than these between a message and the work that needs it.
        if len(sent) > 4 * self.stage.parts:
            sent.popleft()()

    def _backward(self, chunk: int, x, random: dict, dout, tensors, scale):
        """Returns the terms of this stage (K,), the gradient of x, None for the first part, and of the weights."""
        after = kernels.get_rng_state()
        if dout is not None:  # the masks of dropout are those of the forward pass, which the last part has not had
            kernels.set_rng_state(random)

        # ms.value_and_grad is in a cycle with forward, which keeps what it sees until Python looks for cycles: tensors
        # are taken away from it after use.
        given = [dout, tensors]

        def forward(x=None):
            dout, tensors = given
            if dout is None:
                terms = self.objective.loss(_Finished(self.stage, x, tensors), tensors) * scale
                return (terms if terms.ndim == 0 else ops.ReduceSum()(terms)), terms
            total = ops.ReduceSum()(self.stage.run(chunk, x, tensors) * dout)
            if self.objective.layer_terms is None:
                return total, Tensor(np.zeros(1, np.float32))  # ops.zeros leaves a kilobyte behind for good
            none = Tensor(np.zeros(1, np.float32))
            terms = ops.concat([none, self.objective.layer_terms(_Layers(self.stage, chunk))]) * scale
            return total + ops.ReduceSum()(terms), terms

        if x is None:
            (_, terms), grads = ms.value_and_grad(forward, None, self.weights[chunk], has_aux=True)()
            dx = None
        else:
            (_, terms), (dx, grads) = ms.value_and_grad(forward, 0, self.weights[chunk], has_aux=True)(x)
        if dout is not None:
            kernels.set_rng_state(after)
        given.clear()
        return np.atleast_1d(terms.asnumpy().astype(np.float64)), dx, grads

    def evaluate(self, tensors: dict) -> np.ndarray:
        """Returns the sums of the terms (K,) of a batch that this stage has."""
        stage, group, terms = self.stage, self.stage.group, np.zeros(len(self.objective.terms))
        for chunk in range(self._chunks):
            part, x = stage.part(chunk), None
            if part > 0:
                x = group.receive(self._shape(tensors), (part - 1) % group.size)
            if part == stage.parts - 1:
                terms += self.objective.loss(_Finished(stage, x, tensors), tensors).asnumpy()
                continue
            group.send_soon(stage.run(chunk, x, tensors), (part + 1) % group.size)()
            if self.objective.layer_terms is not None:
                terms[1:] += self.objective.layer_terms(_Layers(stage, chunk)).asnumpy()
        return terms


class _Inbox:
    """Messages in the order in which their senders work, which is not always that in which they are needed."""

    def __init__(self, pipeline: Pipeline, shapes: list[tuple[int, ...]]):
        self.group, self.shapes = pipeline.stage.group, shapes
        self.parts, self.arrived = pipeline.stage.parts, {}
        self.coming: dict[int, list] = {}
        size, chunks = self.group.size, pipeline._chunks
        for source in range(size):
            messages = []
            for work in order(pipeline.schedule, size, source, len(shapes), chunks):
                part = work.chunk * size + source
                to = part + 1 if work.kind == FORWARD else part - 1
                if 0 <= to < self.parts and to % size == self.group.index:
                    messages.append((to, work.kind, work.micro_batch))
            self.coming[source] = messages

    def receive(self, part: int, work: Work) -> Tensor:
        """Waits for what a piece of work needs."""
        wanted = (part, work.kind, work.micro_batch)
        source = (part - 1 if work.kind == FORWARD else part + 1) % self.group.size
        while wanted not in self.arrived:
            key = self.coming[source].pop(0)
            self.arrived[key] = self.group.receive(self.shapes[key[2]], source)
        return self.arrived.pop(wanted)
