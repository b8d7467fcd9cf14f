"""A model spread over workers as a ParallelConfig says, and what the Trainer asks of it; the models know nothing."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor

from msllm import kernels
from msllm.errors import UserError
from msllm.layers import positions
from msllm.layers.attention import use_core
from msllm.parallel import server, sharded
from msllm.parallel.comm import Workers, start_workers
from msllm.parallel.config import ParallelConfig
from msllm.parallel.context import HeadAttention, RingAttention, token_places
from msllm.parallel.costs import LAST_SHARE, layer_costs
from msllm.parallel.mesh import Mesh
from msllm.parallel.offload import IN_MEMORY, OffloadConfig, offloaded
from msllm.parallel.pipeline import Pipeline, Stage
from msllm.parallel.plans import check_splits, plan_for, sizes
from msllm.parallel.recompute import RecomputedBlock
from msllm.parallel.schedule import cut
from msllm.parallel.spread import spread_layers
from msllm.parallel.whole import WholeCheckpoint
from msllm.parallel.zero import Shares, shares_of, slice_of
from msllm.training import checkpoint
from msllm.training.alone import Alone, scaled_value_and_grad

MOMENTS = ("exp_avg", "exp_avg_sq")


def join(
    config: ParallelConfig, output: str | Path, resume: str | None, offload: OffloadConfig = IN_MEMORY
) -> Alone | server.Server | None:
    """Joins the other processes of a run, where msrun or the launcher started this one.

    Args:
        config: how the run is spread.
        output, resume: see Trainer.train; a checkpoint in parts is read by a Strategy, in one process too.
        offload: where states are.

    Returns:
        What the Trainer takes: None for a process alone. Of a parameter server, what serves those who train.
    """
    workers = start_workers()
    if config.servers:
        return server.part(workers, config)
    found = checkpoint.find(Path(output))
    source = Path(resume) if resume not in (None, "auto") else found[-1] if resume and found else None
    if config.mode == "auto":
        return _auto(workers, config)
    if not config.plain or (source is not None and (source / checkpoint.LAYOUT).is_file()):
        workers = Strategy(workers or Workers(0, 1), config)
    return offloaded(workers, offload, output)


def _auto(workers: Workers | None, config: ParallelConfig) -> "Strategy":
    if kernels.DEVICE != "Ascend":
        raise UserError(
            f"parallel.mode is auto: MindSpore's auto-parallel runs on Ascend cards, found {kernels.DEVICE}; use "
            f"--parallel.mode explicit, or look at the layout with msllm parallel compile"
        )
    from msllm.parallel.auto.strategy import AutoStrategy

    return AutoStrategy(workers or Workers(0, 1), config)


class Strategy(Alone):
    """What training.Alone is for one process, for workers in any layout.

    Args:
        workers: all of them.
        config: the layout.

    Attributes: those of Alone, and
        mesh: the groups of workers.
        parameters: what this worker's optimiser updates, once a model is prepared.
        pipeline: the Pipeline, where there is one.
        trained: the sizes of this worker's parameters by name, without those of blocks that have owners.
        partial: names of those whose gradients each tensor-parallel worker has a part of.
        tied: the name of an embedding that is the head of another stage, or None.
        blocks: RecomputedBlocks, where there are some.
        sizes, width: of the model, see plans.sizes.

    Raises:
        UserError: the layout does not fit the number of workers.
    """

    sharded = True

    def __init__(self, workers: Workers, config: ParallelConfig):
        self.mesh = mesh = Mesh(workers, config)
        self.config, self.micro_batches = mesh.config, config.micro_batches
        self.rank, self.world, self.any, self.barrier = workers.rank, workers.world, workers.any, workers.barrier
        self.agree, self.objects, self.watch = workers.agree, workers.objects, workers.watch
        self.data_rank, self.data_world = mesh.data.index, mesh.data.size
        # The workers of a tensor group drop out the same of the residual stream, which each of them has; where they
        # share its tokens, each something else.
        streams = mesh.tensor.size if self.config.split_norms else 1
        self.random_offset = (mesh.pipeline.index * mesh.samples.size + mesh.samples.index) * streams
        self.random_offset += mesh.tensor.index if self.config.split_norms else 0
        self._places = functools.partial(token_places, zigzag=self.config.attention == "ring")
        self.length_multiple = self.config.length_multiple
        self.pipeline: Pipeline | None = None

    def prepare(self, model, objective, jit: bool) -> list[Parameter]:
        """Spreads a CausalLM in place, which has the same values on all workers; returns ``parameters``.

        Raises:
            UserError: the model or its objective cannot be spread so.
        """
        if jit:  # the command refuses it before workers start
            raise UserError(
                "jit compiles whole models, and collectives need PyNative; leave out jit or the parallel options"
            )
        mesh, plan, known = self.mesh, plan_for(model.config.model_type), sizes(model.config)
        self.config.check(**known)
        check_splits(model.config, self.config)
        frozen = [p.name for p in model.get_parameters() if not p.requires_grad]
        if frozen and self.config.optimizer == 3:
            raise UserError(
                f"{frozen[0]} is not trained, and parallel.optimizer 3 shares what is; use --parallel.optimizer 2"
            )
        if self.config.pipeline > 1 and len(objective.terms) > 1 and objective.layer_terms is None:
            raise UserError(
                f"the objective has the terms {', '.join(objective.terms)}, which stages cannot share; use "
                f"--parallel.pipeline 1"
            )
        self.model, self.objective = model, objective
        self.whole = {p.name: tuple(p.shape) for p in model.get_parameters()}
        self._of_experts = f".{plan.experts}.experts." if plan.experts else None
        self.sizes, self.width = known, model.embedding.weight.shape[1]
        layers = [1.0] * known["layers"], 0.0, 0.0, 1.0
        if mesh.pipeline.size > 1 and self.config.cut == "cost":
            layers = mesh.world.objects((*layer_costs(model, plan), LAST_SHARE) if self.rank == 0 else None)[0]
        self.partial = spread_layers(model, plan, mesh)
        if mesh.pipeline.size > 1:
            costs, *ends = layers
            bounds = cut(costs, mesh.pipeline.size * self.config.chunks, *ends)
            split = mesh.tensor.size if self.config.split_norms else 1
            stage = Stage(model, plan, bounds, mesh.pipeline)
            self.pipeline = Pipeline(stage, objective, self.config.schedule, self.width, split)
        core = None
        if mesh.sequence.size > 1:
            core = {"ring": RingAttention, "heads": HeadAttention}[self.config.attention](mesh.sequence, self._places)
        use_core(core)
        self._held = [dataclasses.asdict(slice_of(p)) for p in model.get_parameters()]
        self.tied = None
        if mesh.ends.size > 1 and model.tied:
            self.tied = model.embedding.weight.name
        self._wrap_blocks(getattr(model.body, plan.blocks))
        self._share_parameters()
        return self.parameters

    def _wrap_blocks(self, blocks) -> None:
        """Blocks that are computed twice, or that let their parameters go between."""
        self.blocks: list[RecomputedBlock] = []
        if not self.config.recompute and self.config.optimizer < 3:
            return
        chosen = range(len(blocks))
        if self.pipeline is not None:  # all parts but the last one run twice anyway
            stage = self.pipeline.stage
            chosen = range(*stage.pieces[-1]) if stage.is_last else ()
        names = {id(p): p.name for p in self.model.get_parameters()}
        for i in chosen:
            weights = blocks[i].trainable_params()
            shares = Shares(weights, self.mesh.samples) if self.config.optimizer == 3 else None
            blocks[i] = RecomputedBlock(blocks[i], shares, self._sum_partial)
            self.blocks.append(blocks[i])
        for parameter in self.model.get_parameters():
            parameter.name = names.get(id(parameter), parameter.name)

    def _share_parameters(self) -> None:
        """Finds what the optimiser of this worker updates."""
        whole = list(self.model.trainable_params())
        block_shares = [block.shares for block in self.blocks if block.shares is not None]
        self._shares: list[Shares] = []
        if self.config.optimizer:
            for of_experts in (False, True):
                some = [p for p in whole if self.is_expert(p.name) == of_experts]
                self._shares += shares_of(some, self.samples(of_experts))
        self.trained = {p.name: p.size for p in whole}
        self._block_owned = [p for shares in block_shares for p in shares.owned]
        owned = [p for shares in self._shares for p in shares.owned] if self.config.optimizer else whole
        self.parameters: list[Parameter] = [*owned, *self._block_owned]
        self._graph = [*whole, *self._block_owned]
        self._value_and_grad = scaled_value_and_grad(self.model, self.objective, self._graph)
        self._let_go_between()

    def is_expert(self, name: str) -> bool:
        """Whether a parameter is of an expert."""
        return self._of_experts is not None and self._of_experts in name

    def samples(self, of_experts: bool):
        """The workers with other tokens and the same parameters, of experts or of the rest."""
        return self.mesh.expert_samples if of_experts else self.mesh.samples

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """Returns counts of this worker's tokens (any shape) summed over all that have other tokens."""
        return self.mesh.samples.sum_array(values)

    def sum_terms(self, terms: np.ndarray) -> np.ndarray:
        """Returns the loss terms (K,) summed over tokens and stages."""
        return self.mesh.pipeline.sum_array(self.mesh.samples.sum_array(terms))

    def local(self, tensors: Mapping[str, Tensor], counts: np.ndarray) -> tuple[Mapping[str, Tensor], np.ndarray]:
        """Returns this worker's tokens of a micro-batch, and its counts of targets (K,)."""
        if self.mesh.sequence.size == 1:
            return tensors, counts
        B, T = tensors["input_ids"].shape
        places = self._places(T, self.mesh.sequence.size, self.mesh.sequence.index)
        whole = {"position_ids": positions(T), **tensors, "targets": tensors["targets"].reshape(B, T)}
        local = {k: Tensor(np.ascontiguousarray(v.asnumpy()[:, places])) for k, v in whole.items()}
        # The targets were counted in the whole batch; those of layers are not by tokens.
        counts = np.append(counts[:1] / self.mesh.sequence.size, counts[1:])
        return {**local, "targets": local["targets"].reshape(-1)}, counts

    def forward_backward(self, batches: list[dict], scale: Tensor) -> tuple[np.ndarray, list[Tensor]]:
        """Returns the sums of the terms (K,) and the gradients of ``parameters``, summed over all workers.

        Args:
            batches: the tensors of each micro-batch, see ``local``.
            scale: what the terms are multiplied by, () or (K,).
        """
        if self.config.optimizer == 3:
            self._fetch()
        gradients: dict[str, Tensor] = {}

        def collect(new: Mapping[str, Tensor]) -> None:
            if self.config.optimizer >= 2:
                new = self._to_owners(self._sum_partial(new))
            for name, gradient in new.items():
                gradients[name] = gradients[name] + gradient if name in gradients else gradient

        if self.pipeline is not None:
            terms = self.pipeline.step(batches, scale, collect)
        else:
            terms = np.zeros(max(1, scale.size))
            for tensors in batches:
                (_, values), new = self._value_and_grad(tensors, scale)
                terms = terms + np.atleast_1d(values.asnumpy().astype(np.float64))
                collect({p.name: g for p, g in zip(self._graph, new, strict=True)})
                del new  # else these gradients live until the next ones are there
        if self.config.optimizer < 2:
            gradients = self._summed(self._sum_partial(gradients))
        self._let_go_between()
        return self.sum_terms(terms), [gradients[p.name] for p in self.parameters]

    def _summed(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums gradients of whole parameters over the workers with other tokens."""
        if self.tied is not None:
            gradients[self.tied] = self.mesh.ends.all_reduce(gradients[self.tied])
        if self.config.optimizer:
            return self._to_owners(gradients)
        for of_experts in (False, True):
            names = [n for n in gradients if self.is_expert(n) == of_experts]
            summed = self.samples(of_experts).sum_tensors([gradients[n] for n in names])
            gradients |= dict(zip(names, summed, strict=True))
        return gradients

    def _to_owners(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of whole parameters to those of what this worker owns; those of blocks are so already."""
        new = {p.name: gradients[p.name] for p in self._block_owned}
        for shares in self._shares:
            owned = shares.sum_to_owners([gradients[p.name] for p in shares.parameters])
            new |= {p.name: g for p, g in zip(shares.owned, owned, strict=True)}
        return new

    def _sum_partial(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums the gradients of whole parameters of which each tensor-parallel worker has a part only."""
        names = [name for name in gradients if name in self.partial]
        summed = self.mesh.tensor.sum_tensors([gradients[name] for name in names])
        return {**gradients, **dict(zip(names, summed, strict=True))}

    def sum_squares(self, gradients: list[Tensor]) -> float:
        """Returns the sum of squares over all workers' gradients, each number once."""
        total, by_copies = 0.0, {}
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            by_copies.setdefault(self._copies(parameter), []).append(gradient)
        for copies, some in by_copies.items():
            total += kernels.sum_squares(some) / copies
        return float(self.mesh.world.sum_array(np.array([total]))[0])

    def _copies(self, parameter: Parameter) -> int:
        """How many workers have the same numbers."""
        held = slice_of(parameter)
        copies = 1 if held.flat is not None else self.samples(self.is_expert(held.name)).size
        copies *= self.mesh.tensor.size if held.ranges is None else 1
        return copies * (2 if held.name == self.tied else 1)

    def _writes(self, parameter: Parameter) -> bool:
        """Whether it is this one of the workers with the same numbers that writes them."""
        held = slice_of(parameter)
        first = held.flat is not None or self.samples(self.is_expert(held.name)).index == 0
        first = first and (held.ranges is not None or self.mesh.tensor.index == 0)
        return first and (held.name != self.tied or self.mesh.ends.index == 0)

    def after_update(self) -> None:
        """Gives all workers the new values, once the optimisers have updated ``parameters``."""
        if self.config.optimizer < 3:
            self._fetch()

    def _fetch(self) -> None:
        if self.config.optimizer:
            for shares in self._shares:
                shares.fetch()

    def _let_go_between(self) -> None:
        if self.config.optimizer == 3:
            for shares in self._shares:
                shares.let_go()

    def evaluate(self, tensors: dict) -> np.ndarray:
        """Returns the sums of the loss terms (K,) of this worker's tokens; zeros where a later stage has them."""
        if self.config.optimizer == 3:
            self._fetch()
        if self.pipeline is not None:
            terms = self.pipeline.evaluate(tensors)
        else:
            terms = np.atleast_1d(self.objective.loss(self.model, tensors).asnumpy().astype(np.float64))
        self._let_go_between()
        return terms

    def save(self, folder: Path, optimizer, info: Mapping) -> None:
        """Writes this worker's part of a checkpoint; the first worker finishes it when all have written.

        Args:
            folder: of the checkpoint, on a disk that all workers see; what is in it is lost.
            optimizer: the Optimizer of ``parameters``; None writes the parameters alone.
            info: what a reader needs beside.
        """
        if self.rank == 0:
            checkpoint.remove(folder)
            folder.mkdir(parents=True)
        self.barrier()
        parts = []
        for i, parameter in enumerate(self.parameters):
            if self._writes(parameter):
                held = slice_of(parameter)
                parts.append(("param", held, parameter.asnumpy()))
                moments = (getattr(optimizer, kind)[i].asnumpy() for kind in MOMENTS) if optimizer else ()
                parts += [(kind, held, value) for kind, value in zip(MOMENTS, moments)]
        trained = {slice_of(p).name for p in self.parameters}
        parts += [
            ("param", slice_of(p), p.asnumpy())
            for p in self.model.get_parameters()
            if p.name not in trained and not p.requires_grad and self._writes(p)
        ]
        sharded.write_part(folder, self.rank, parts)
        self._finish_save(folder, info, self._held)

    def _finish_save(self, folder: Path, info: Mapping, held: list[dict]) -> None:
        """Lets the first worker declare a checkpoint complete; ``held`` are the parts that this one has."""
        states, held = self.mesh.world.objects(kernels.get_rng_state()), self.mesh.world.objects(held)
        self.barrier()
        if self.rank == 0:
            about = {"layout": self._layout(), "random": states, "config": self.model.config_values(), "held": held}
            sharded.finish(folder, self.world, {**info, **about})

    def _layout(self) -> dict:
        return {**dataclasses.asdict(self.config), "words": str(self.config)}

    def load(self, folder: Path, optimizer=None) -> dict:
        """Sets the parameters, and the optimiser's moments, from a checkpoint of any layout; returns its info."""
        whole = (folder / checkpoint.LAYOUT).is_file()
        source = sharded.ShardedCheckpoint(folder) if whole else WholeCheckpoint(folder, self.model)
        for i, parameter in enumerate(self.parameters):
            held = slice_of(parameter)
            parameter.set_data(Tensor(source.read("param", held)))
            if optimizer is not None:
                for kind in MOMENTS:
                    getattr(optimizer, kind)[i] = Tensor(source.read(kind, held))
        self._fetch()
        self._let_go_between()
        random = source.info.get("random", [])
        same = source.info.get("layout") == self._layout()
        if random:  # with another layout, other workers drop out other things: only the count goes on
            kernels.set_rng_state(
                random[self.rank] if same else {**random[0], "seed": random[0]["seed"] + self.random_offset}
            )
        return source.info

    def write_whole(self, folder: Path, write: Callable[[], None]) -> None:
        """Lets ``write`` of the first worker write the whole model, put together by way of ``folder``.

        Where that fails, the folder stays: it is a checkpoint in parts without moments.
        """
        self.save(folder, None, {})
        if self.rank == 0:
            source = sharded.ShardedCheckpoint(folder)
            tensors = {name: source.full("param", name) for name in self.whole}
            self.model.state_dict = lambda: self.model.unsanitize(tensors)
            try:
                write()
            except (UserError, OSError) as e:
                raise UserError(f"{e}; the model is in {folder}: turn it into a folder with msllm convert") from e
            finally:
                del self.model.state_dict
            checkpoint.remove(folder)
        self.barrier()
