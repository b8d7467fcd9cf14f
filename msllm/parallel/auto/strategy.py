"""Training on Ascend cards whose programs MindSpore's auto-parallel makes: what the Trainer asks of the processes."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from msllm.errors import UserError
from msllm.parallel import sharded
from msllm.parallel.auto.cuts import Cuts
from msllm.parallel.auto.held import held_part
from msllm.parallel.auto.program import Program, set_context
from msllm.parallel.comm import Workers
from msllm.parallel.config import ParallelConfig
from msllm.parallel.mesh import coordinates
from msllm.parallel.plans import plan_for, sizes
from msllm.parallel.strategy import MOMENTS, Strategy
from msllm.parallel.whole import WholeCheckpoint
from msllm.training import checkpoint
from msllm.training.losses import IGNORE_INDEX


class GraphOptimizer:
    """An Optimizer whose states are in the graph of a step, see train.AdamW; arguments as for training.optimizer.

    Attributes:
        cell: the train.AdamW, once the step is built.
    """

    def __init__(self, parameters: list[Parameter], betas, epsilon: float, weight_decay: float):
        self.parameters, self.betas, self.epsilon, self.weight_decay = parameters, betas, epsilon, weight_decay
        self.cell = None
        self._steps = 0

    @property
    def step_count(self) -> int:
        """Steps that were done."""
        return self._steps if self.cell is None else int(self.cell.step.asnumpy())

    @step_count.setter
    def step_count(self, value: int) -> None:
        self._steps = value
        if self.cell is not None:
            self.cell.step.set_data(Tensor(float(value), ms.float32))


class AutoStrategy(Strategy):
    """What training.Alone is for one process, for cards that MindSpore's auto-parallel spreads a model over.

    Made before the model is: it sets MindSpore's parallel context.

    Args:
        workers: all processes, one a card.
        config: the layout, mode auto.
        cuts: how operators are cut; without it as the layout says, in bfloat16 with Ascend's fused operators.
    """

    fixed_shapes = True

    def __init__(self, workers: Workers, config: ParallelConfig, cuts: Cuts | None = None):
        super().__init__(workers, config)
        self.micro_batches = 1  # the graph takes a batch apart itself
        if self.config.search != "none":  # the front end deals out the examples too
            self.data_rank, self.data_world = 0, 1
        set_context(self.config, self.rank)
        self._cuts = cuts or Cuts.of(self.config)
        self.optimizers = {"adamw": GraphOptimizer}
        self._step = self._pending = None

    def prepare(self, model, objective, jit: bool) -> list[Parameter]:
        """Cuts the layers of a CausalLM in place; returns its trained parameters, of which the graph has the states.

        Raises:
            UserError: the model or its objective cannot be spread so.
        """
        self.config.check(**sizes(model.config))
        if len(objective.terms) > 1:
            raise UserError(
                f"the objective has the terms {', '.join(objective.terms)}, and auto-parallel trains on one; use "
                f"--parallel.mode explicit"
            )
        frozen = [p.name for p in model.get_parameters() if not p.requires_grad]
        if frozen:
            raise UserError(f"{frozen[0]} is not trained, and auto-parallel trains whole models; merge adapters first")
        self.model, self.objective = model, objective
        self.whole = {p.name: tuple(p.shape) for p in model.get_parameters()}
        self.parameters = list(model.trainable_params())
        self.tied = model.embedding.weight.name if model.tied and self.config.pipeline > 1 else None
        self._program = Program(model, self.config, self._cuts)
        return self.parameters

    def local(self, tensors: Mapping[str, Tensor], counts: np.ndarray) -> tuple[Mapping[str, Tensor], np.ndarray]:
        """Returns what the graph takes of a batch.

        Raises:
            UserError: packed examples, or padding elsewhere than at the end: the graph attends to whole blocks.
        """
        extra = sorted(set(tensors) - {"input_ids", "targets", "attention_mask"})
        if extra:
            raise UserError(
                f"a batch has {', '.join(extra)}, and auto-parallel trains on whole blocks; leave packing out"
            )
        if "attention_mask" in tensors and (np.diff(tensors["attention_mask"].asnumpy(), axis=1) > 0).any():
            raise UserError("a batch is padded on the left, and auto-parallel trains on whole blocks; pad on the right")
        ids = tensors["input_ids"]
        return {"input_ids": ids, "targets": tensors["targets"].reshape(ids.shape)}, counts

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """Returns counts of this card's examples summed over all that have others."""
        return values if self.config.search != "none" else self.mesh.data.sum_array(values)

    def sum_terms(self, terms: np.ndarray) -> np.ndarray:
        """Returns the terms of evaluate: they are those of the whole batch already."""
        return terms

    def own_step(self, optimizer: GraphOptimizer, max_grad_norm: float) -> Callable:
        """Returns step(batches, learning_rate), see training.step.build_step.

        After a loss or norm that is no finite number the parameters are spoilt; the Trainer stops there and saves
        nothing.
        """
        o = optimizer
        self._step = self._program.train_step(o.betas, o.epsilon, o.weight_decay, max_grad_norm)
        o.cell, steps = self._step.optimizer, o.step_count
        o.step_count = steps
        shape: list[tuple[int, int]] = []

        def step(batches, learning_rate: float) -> tuple[np.ndarray, float]:
            mine = [self.local(tensors, self.objective.counts(counts)) for tensors, counts in batches]
            shape[:] = shape or [_shape([tensors for tensors, _ in mine])]
            ids, targets = _joined([tensors for tensors, _ in mine], *shape)
            count = float(self.sum_array(sum(counts for _, counts in mine))[0])
            self._step.scale.set_data(Tensor(1.0 / max(1.0, count), ms.float32))
            self._step.learning_rate.set_data(Tensor(learning_rate, ms.float32))
            with self._program.compiling():
                self._load_pending(ids, targets)
                loss, norm = self._step(ids, targets)
            # The last stage has the loss.
            return np.atleast_1d(self.objects(float(loss.asnumpy()))[-1]), float(norm.asnumpy()[0])

        return step

    def evaluate(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        """Returns the sum of the losses (1,) of the whole batch."""
        rows, length = tensors["input_ids"].shape
        rows += -rows % self.config.micro_batches
        with self._program.compiling():
            loss = self._program.loss(*_joined([tensors], (rows, length)))
        return np.atleast_1d(self.objects(float(loss.asnumpy()))[-1])

    def _part(self, parameter: Parameter):
        return held_part(
            parameter.name,
            self.whole[parameter.name],
            tuple(parameter.shape),
            coordinates(self.rank, self.config),
            self.config,
            plan_for(self.model.config.model_type),
            self.model,
        )

    def _on_this_stage(self) -> list[tuple[int, Parameter]]:
        """The parameters of this card's stage, and their numbers among all."""
        layouts = getattr(self._step, "parameter_layout_dict", None) if self.world > 1 else None
        return [(i, p) for i, p in enumerate(self.parameters) if not layouts or p.name in layouts]

    def save(self, folder: Path, optimizer, info: Mapping) -> None:
        """See Strategy.save; a checkpoint is in the model's own layout, whatever the graph's."""
        if self.rank == 0:
            checkpoint.remove(folder)
            folder.mkdir(parents=True)
        self.barrier()
        parts, held = [], []
        for i, parameter in self._on_this_stage():
            part, first = self._part(parameter)
            held.append(dataclasses.asdict(part))
            if first and (parameter.name != self.tied or self.mesh.pipeline.index == 0):
                values = [("param", parameter)]
                if optimizer is not None:
                    values += [(kind, getattr(optimizer.cell, kind)[i]) for kind in MOMENTS]
                parts += [(kind, part, value.asnumpy().reshape(part.local_shape)) for kind, value in values]
        sharded.write_part(folder, self.rank, parts)
        self._finish_save(folder, info, held)

    def load(self, folder: Path, optimizer=None) -> dict:
        """Reads a checkpoint of any layout, once the graph is compiled: before, nobody knows who holds what."""
        whole = (folder / checkpoint.LAYOUT).is_file()
        source = sharded.ShardedCheckpoint(folder) if whole else WholeCheckpoint(folder, self.model)
        self._pending = (source, optimizer is not None)
        return source.info

    def _load_pending(self, ids: Tensor, targets: Tensor) -> None:
        if self._pending is None:
            return
        (source, moments), self._pending = self._pending, None
        self._step.compile(ids, targets)
        for i, parameter in self._on_this_stage():
            part, _ = self._part(parameter)
            values = [("param", parameter)]
            values += [(kind, getattr(self._step.optimizer, kind)[i]) for kind in MOMENTS] if moments else []
            for kind, target in values:
                read = np.ascontiguousarray(source.read(kind, part).reshape(target.shape))
                target.set_data(Tensor(read), slice_shape=True)


def _shape(batches: list[Mapping[str, Tensor]]) -> tuple[int, int]:
    """Rows of all batches together and the tokens of one: every step takes those of the first."""
    return sum(b["input_ids"].shape[0] for b in batches), batches[0]["input_ids"].shape[1]


def _joined(batches: list[Mapping[str, Tensor]], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns ids and targets of some batches as one of ``shape``; what is missing has no targets."""
    ids, targets = np.zeros(shape, np.int32), np.full(shape, IGNORE_INDEX, np.int32)
    row = 0
    for batch in batches:
        rows, length = batch["input_ids"].shape
        ids[row : row + rows, :length] = batch["input_ids"].asnumpy()
        targets[row : row + rows, :length] = batch["targets"].asnumpy()
        row += rows
    return Tensor(ids), Tensor(targets)
