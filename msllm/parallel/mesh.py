"""The workers as a grid: who shares what with whom."""

from msllm.errors import UserError
from msllm.parallel.comm import Group, Workers
from msllm.parallel.config import ParallelConfig


class Mesh:
    """The groups that this worker is in.

    Ranks count through tensor first, then sequence, data and pipeline: the workers of a tensor group, which talk most,
    are neighbours, on one machine.

    Attributes:
        world, tensor, sequence, data, pipeline: Groups.
        expert: data-parallel workers that together hold all experts of a layer.
        samples: those that see other tokens of the batch than this one, and hold the same parameters: data x sequence.
        expert_samples: of them, those that hold the same experts.
        ends: the first and the last stage, where this worker is on one of them, else this worker alone.
    """

    def __init__(self, workers: Workers, config: ParallelConfig):
        config = config.for_workers(workers.world)
        self.world, self.config, self.traffic = workers, config, workers.traffic
        P, D, S, T = config.pipeline, config.data, config.sequence, config.tensor
        p, d, s, t = coordinates(workers.rank, config)
        E, e = config.expert, d // config.expert

        def rank(p, d, s, t):
            return ((p * D + d) * S + s) * T + t

        members = {
            "tensor": [rank(p, d, s, i) for i in range(T)],
            "sequence": [rank(p, d, i, t) for i in range(S)],
            "data": [rank(p, i, s, t) for i in range(D)],
            "pipeline": [rank(i, d, s, t) for i in range(P)],
            "expert": [rank(p, e * E + i, s, t) for i in range(E)],
            "samples": [rank(p, i, j, t) for i in range(D) for j in range(S)],
            "expert_samples": [rank(p, i * E + d % E, j, t) for i in range(D // E) for j in range(S)],
            "ends": [rank(i, d, s, t) for i in (0, P - 1)] if P > 1 and p in (0, P - 1) else [workers.rank],
        }
        known: dict[tuple[int, ...], Group] = {}
        for name, ranks in members.items():
            group = Group(name, ranks, workers.rank, workers.traffic)
            same = known.get(group.ranks)
            if same is not None:
                group._handle = same._handle  # the backend knows these members already
            else:
                known[group.ranks] = group.open(workers.world)
            setattr(self, name, group)


def coordinates(rank: int, config: ParallelConfig) -> tuple[int, int, int, int]:
    """Returns a rank's place along pipeline, data, sequence and tensor."""
    if not 0 <= rank < config.world:
        raise UserError(f"rank is {rank}, and the layout has {config.world} workers; use 0 to {config.world - 1}")
    rest, t = divmod(rank, config.tensor)
    rest, s = divmod(rest, config.sequence)
    p, d = divmod(rest, config.data)
    return p, d, s, t
