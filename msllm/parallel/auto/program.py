"""A layout turned into MindSpore's auto-parallel: its context, and the program of one optimiser step."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
from mindspore import ParameterTuple, nn
from mindspore.parallel import set_algo_parameters

from msllm import kernels
from msllm.parallel.auto.apply import cut_model
from msllm.parallel.auto.cuts import Cuts
from msllm.parallel.auto.train import AdamW, BlockLoss, TrainStep
from msllm.parallel.config import ParallelConfig
from msllm.parallel.plans import plan_for
from msllm.training.arguments import TrainingArguments

_CALL_DEPTH = 10_000  # of functions in a graph: a pipeline's stage calls each block of each micro-batch from the last
_NO_THRESHOLD = 0  # KiB: parameters of any size are shared


def set_context(config: ParallelConfig, rank: int, strategy_file: str | Path | None = None) -> None:
    """Sets MindSpore's parallel context; before a model is built, whose parameters then hold no values yet.

    Args:
        config: with ``data`` filled in.
        rank: of this card among all.
        strategy_file: where MindSpore writes how it cuts the parameters (protobuf), once it has compiled.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_recursion_limit(_CALL_DEPTH)
    if config.world == 1:
        return
    values = {
        "parallel_mode": "semi_auto_parallel" if config.search == "none" else "auto_parallel",
        "device_num": config.world,
        "global_rank": rank,
        "pipeline_stages": config.pipeline,
        # Each card reads the examples of its data-parallel rank; in a search, which deals ranks out, all examples.
        "dataset_strategy": ((config.data, 1),) * 2 if config.search == "none" else "full_batch",
        # The program's loss is a sum over the whole batch: gradients of its parts are summed, not averaged.
        "gradients_mean": False,
        "enable_parallel_optimizer": config.optimizer > 0,
    }
    if config.optimizer:
        level = {"optimizer_level": f"level{config.optimizer}", "parallel_optimizer_threshold": _NO_THRESHOLD}
        values["parallel_optimizer_config"] = level
    if config.search != "none":
        values["search_mode"] = config.search
    if config.search == "dynamic_programming":
        # Else it tries every strategy of every elementwise operator, and runs out of memory.
        set_algo_parameters(elementwise_op_strategy_follow=True, fully_use_devices=True)
    if strategy_file is not None:
        values["strategy_ckpt_config"] = {"save_file": str(strategy_file), "only_trainable_params": False}
    ms.set_auto_parallel_context(**values)


class Program:
    """What a model in a layout is compiled from: its layers are cut in place.

    Args:
        model: a whole CausalLM; with ``set_context`` set before it was built.
        config: with ``data`` filled in, checked against the model's sizes.
        cuts: how operators are cut and in which type they compute.

    Attributes:
        loss: a cell (input_ids, targets) int32 (B, T) -> the sum of the losses, micro-batch by micro-batch.
    """

    def __init__(self, model, config: ParallelConfig, cuts: Cuts):
        names = {id(p): p.name for p in model.get_parameters()}
        self.model, self.config = model, config
        self._functions = cut_model(model, plan_for(model.config.model_type), config, cuts)
        self.loss = BlockLoss(model, cuts)
        if config.pipeline > 1:
            self.loss = nn.PipelineCell(self.loss, config.micro_batches)
        elif config.micro_batches > 1:
            self.loss = nn.GradAccumulationCell(self.loss, config.micro_batches)
        for parameter in model.get_parameters():  # cells around it may have named it anew
            parameter.name = names.get(id(parameter), parameter.name)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """To be open whenever a cell is compiled, which its first call does."""
        with kernels.replaced(**self._functions):
            yield

    def train_step(self, betas, epsilon: float, weight_decay: float, max_grad_norm: float) -> TrainStep:
        """Returns the cell of one optimiser step; arguments as for train.AdamW."""
        self.model.set_train(True)
        weights = ParameterTuple(self.model.trainable_params())
        optimizer = AdamW(weights, betas, epsilon, weight_decay, max_grad_norm, self._uncounted())
        # Auto-parallel adds up gradients of micro-batches in parameters of its own; one card differentiates the sum.
        step = TrainStep(self.loss, optimizer, self.config.micro_batches > 1 and self.config.world > 1)
        step.set_train(True)
        return step

    def _uncounted(self) -> tuple[str, ...]:
        """The tied embedding on the last stage: its gradient goes to the first one, which adds its own."""
        stage_cards = self.config.world // self.config.pipeline
        first = ms.get_auto_parallel_context("global_rank") < stage_cards
        return () if first or not self.model.tied else (self.model.embedding.weight.name,)


def build(model, config: ParallelConfig, training: TrainingArguments, cuts: Cuts) -> tuple[Program, TrainStep]:
    """Returns the program of a model, and its step with the options of ``training``."""
    program, t = Program(model, config, cuts), training
    betas = (t.adam_beta1, t.adam_beta2)
    return program, program.train_step(betas, t.adam_epsilon, t.weight_decay, t.max_grad_norm)
