"""Whether MindSpore's auto-parallel compiles a layout, and what each card would hold and send: without hardware."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from msllm.errors import UserError
from msllm.files import read_json, write_json
from msllm.models.config import ModelConfig
from msllm.models.presets import check_length
from msllm.models.pretrained import model_class
from msllm.parallel.auto import simulate
from msllm.parallel.auto.graph import PARTS, Collective, CutGraph, read_graph
from msllm.parallel.config import ParallelConfig
from msllm.parallel.plans import Plan, plan_for, sizes
from msllm.parallel.schedule import cut

MOMENTS = ("exp_avg", "exp_avg_sq")
_FEW, _MORE = 2, 3  # layers of a stage, from which more are worked out


@dataclasses.dataclass(frozen=True)
class Check:
    """One card of a stage.

    Attributes:
        stage, rank: which.
        shapes: whole shapes of the trained parameters of the stage.
        graph: what the card has of them, and its collectives.
        seconds: of MindSpore's front end; ``peak_bytes``: of the process' memory. Of both compilations where layers
            were worked out.
        strategy: MindSpore's strategy file; None where layers were worked out.
    """

    stage: int
    rank: int
    shapes: dict[str, tuple[int, ...]]
    graph: CutGraph
    seconds: float
    peak_bytes: int
    strategy: Path | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the card's parts of the parameters."""
        return sum(self.graph.nbytes(name) for name in self.shapes)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the card's parts of the optimiser's moments."""
        return sum(self.graph.nbytes(f"{kind}.{name}") for name in self.shapes for kind in MOMENTS)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is compiled.

    Args:
        config: of the model.
        parallel: the layout, ``data`` filled in and checked.
        length: tokens of an example.
        batch: examples of a data-parallel rank in a micro-batch.
        dtype: of activations, by MindSpore's name.
    """

    config: ModelConfig
    parallel: ParallelConfig
    length: int
    batch: int = 1
    dtype: str = "bfloat16"


def check_layout(config: ModelConfig, parallel: ParallelConfig, cards: int, length: int) -> ParallelConfig:
    """Returns the layout for so many cards; UserError where it does not fit the model, or auto-parallel."""
    parallel = dataclasses.replace(parallel, mode="auto").for_workers(cards)
    plan_for(config.model_type)
    known = sizes(config)
    check_length(config, length, "length")
    parallel.check(**known, length=length)
    return parallel


def compile_stages(
    work: Work,
    folder: Path,
    rank: int | None = None,
    fast: bool = False,
    working: Callable[[str], AbstractContextManager] = nullcontext,
) -> list[Check]:
    """Compiles the program of the first card of each stage, one process after the other.

    Args:
        folder: of graphs, strategy files and logs.
        rank: compiles that card's alone.
        fast: compiles two and three layers a stage and works the rest out: every further layer adds the same.
        working: is told what is compiled next, and gives the block in which that goes on.

    Raises:
        UserError: the platform is not the one that is known; it does not compile; ``rank`` is none of the cards;
            ``fast`` with a search, or stages of fewer layers.
    """
    simulate.check_platform()
    parallel = work.parallel
    stage_cards = parallel.world // parallel.pipeline
    if rank is not None and not 0 <= rank < parallel.world:
        raise UserError(f"rank is {rank}, and there are {parallel.world} cards; use 0 to {parallel.world - 1}")
    ranks = [stage * stage_cards for stage in range(parallel.pipeline)] if rank is None else [rank]
    if not fast:
        return [_compile(work, one, folder, working) for one in ranks]
    bounds = cut([1.0] * sizes(work.config)["layers"], parallel.pipeline)
    if parallel.search != "none" or min(stop - start for start, stop in bounds) < _MORE:
        raise UserError(
            f"fast works layers out from {_MORE} of a stage, and a search looks at all of them; the layers of the "
            f"stages are {', '.join(str(b - a) for a, b in bounds)}, the search is {parallel.search}; leave fast out"
        )
    found = []
    for one in ranks:
        few, more = (
            _compile(
                dataclasses.replace(work, config=_shortened(work.config, n * parallel.pipeline)), one, folder, working
            )
            for n in (_FEW, _MORE)
        )
        found.append(_extended(few, more, bounds[one // stage_cards], plan_for(work.config.model_type)))
    return found


def _shortened(config: ModelConfig, layers: int) -> ModelConfig:
    name = "num_hidden_layers" if hasattr(config, "num_hidden_layers") else "n_layer"
    return dataclasses.replace(config, **{name: layers})


def _compile(work: Work, rank: int, folder: Path, working: Callable[[str], AbstractContextManager]) -> Check:
    parallel = work.parallel
    stage = rank // (parallel.world // parallel.pipeline)
    layers = sizes(work.config)["layers"]
    name = f"rank-{rank}-{layers}-layers"
    graphs, strategy = folder / name, folder / f"{name}-strategy.ckpt"
    for old in (*graphs.rglob("*.ir"), strategy):
        old.unlink(missing_ok=True)
    graphs.mkdir(parents=True, exist_ok=True)
    request, result, log = (graphs / n for n in ("request.json", "result.json", "log.txt"))
    result.unlink(missing_ok=True)
    write_json(
        request,
        {
            "parallel": dataclasses.asdict(parallel),
            "rank": rank,
            "config": work.config.to_dict(),
            "length": work.length,
            "rows": work.batch * parallel.micro_batches,
            "dtype": work.dtype,
            "strategy": str(strategy.resolve()),
        },
    )
    command = [sys.executable, "-m", "msllm.parallel.auto.simulate", str(request.resolve()), str(result.resolve())]
    what = f"compiling card {rank} of {parallel.world} (stage {stage}, {layers} layers in all)"
    with log.open("w") as output, working(what):
        environment = {**os.environ, **simulate.environment(graphs.resolve())}
        # MindSpore leaves folders where it works.
        ended = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=graphs)
    found = read_json(result) if result.is_file() else {"error": f"the process ended with code {ended.returncode}"}
    if "error" in found:
        raise UserError(f"{found['error']}; see {log}, and try another layout")
    graph = read_graph(graphs)
    shapes = {n: tuple(s) for n, s in found["shapes"].items() if n in graph.parameters}
    return Check(stage, rank, shapes, graph, found["seconds"], found["peak_bytes"], strategy)


def _extended(few: Check, more: Check, layers: tuple[int, int], plan: Plan) -> Check:
    """Returns what a stage of the layers start to stop would give, from one of _FEW layers and one of _MORE."""
    start, stop = layers
    times = stop - start - _FEW
    before = {(c.part, c.kind, c.dtype, c.members): c for c in few.graph.collectives}
    collectives = []
    for c in more.graph.collectives:
        old = before.get((c.part, c.kind, c.dtype, c.members), Collective(c.part, c.kind, c.dtype, c.members, 0, 0))
        count, payload = (
            getattr(old, what) + times * (getattr(c, what) - getattr(old, what)) for what in ("count", "payload")
        )
        collectives.append(dataclasses.replace(c, count=count, payload=payload))
    inner = _MORE * more.stage + 1  # neither the first nor the last of its stage
    block = re.compile(rf"\.{plan.blocks}\.(\d+)\.")

    def spread(values: dict) -> dict:
        found = {}
        for name, value in values.items():
            number = block.search(name)
            if number is None:
                found[name] = value
            elif int(number[1]) == inner:
                found |= {block.sub(f".{plan.blocks}.{i}.", name): value for i in range(start, stop)}
        return found

    graph = CutGraph(spread(more.graph.parameters), collectives)
    seconds, peak = few.seconds + more.seconds, max(few.peak_bytes, more.peak_bytes)
    return Check(more.stage, more.rank, spread(more.shapes), graph, seconds, peak, None)


def uncut(work: Work, check: Check) -> dict[str, tuple[int, int]]:
    """Returns the parameters that fewer cards share than the layout says: name -> (cards that do, cards that should).

    MindSpore leaves whole, without a word, what cannot be divided evenly. A search cuts as it likes: none are named.
    """
    if work.parallel.search != "none":
        return {}
    parallel, plan = work.parallel, plan_for(work.config.model_type)
    embedding = model_class(work.config.to_dict()).embedding_name
    cut_weights = (*plan.columns, *plan.rows, embedding, "lm_head")
    found = {}
    for name, shape in check.shapes.items():
        cell, _, kind = name.rpartition(".")
        by_tensor = cell.endswith(cut_weights if kind == "weight" else tuple(plan.columns))
        wanted = parallel.tensor if by_tensor else 1
        if parallel.optimizer:
            wanted = parallel.world // parallel.pipeline
        shared = math.prod(shape) // math.prod(check.graph.parameters[name][1])
        if shared < wanted:
            found[name] = (shared, wanted)
    return found


def summary(work: Work, checks: list[Check]) -> dict:
    """Returns what was found, for a JSON file."""
    return {
        "parallel": dataclasses.asdict(work.parallel),
        "config": json.loads(json.dumps(work.config.to_dict())),
        "length": work.length,
        "batch": work.batch,
        "dtype": work.dtype,
        "stages": [
            {
                "stage": check.stage,
                "rank": check.rank,
                "seconds": check.seconds,
                "peak_bytes": check.peak_bytes,
                "weight_bytes": check.weight_bytes,
                "optimizer_bytes": check.optimizer_bytes,
                "parameters": {
                    name: {"shape": shape, "card": check.graph.parameters[name][1]}
                    for name, shape in check.shapes.items()
                },
                "collectives": [{**dataclasses.asdict(c), "sent_estimate": c.sent} for c in check.graph.collectives],
                "uncut": uncut(work, check),
            }
            for check in checks
        ],
    }


def by_part(check: Check) -> dict[str, float]:
    """Returns the bytes that the card sends by part of the step, see Collective.sent."""
    found = dict.fromkeys(PARTS, 0.0)
    for collective in check.graph.collectives:
        found[collective.part] += collective.sent
    return found
