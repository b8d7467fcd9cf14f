"""The workers as a grid: every worker knows the same groups, and neighbours are the ones who talk most."""

import collections
import itertools

import pytest

from msllm.errors import UserError
from msllm.parallel.comm import Group, Workers
from msllm.parallel.config import ParallelConfig
from msllm.parallel.mesh import Mesh, coordinates

# Expert degrees are those that divide the data-parallel one.
LAYOUTS = [
    ParallelConfig(pipeline=p, data=d, sequence=s, tensor=t, expert=e)
    for p, d, s, t in itertools.product((1, 2, 3), (1, 2, 4), (1, 2), (1, 3))
    for e in (1, 2, 4)
    if d % e == 0
]
DEGREES = ("tensor", "sequence", "data", "pipeline", "expert")
NAMES = (*DEGREES, "samples", "expert_samples", "ends")


@pytest.fixture
def opened(monkeypatch):
    """Rank -> the groups that it makes known to the backend, in order; no backend is needed."""
    made: dict[int, list[Group]] = collections.defaultdict(list)

    def open_without_backend(group, world):
        if group.ranks == tuple(range(world)):
            group._handle = "all"  # the backend knows it from the start
        elif group.size > 1:
            group._handle = f"{group.name} {group.ranks}"
            made[group.rank].append(group)
        return group

    monkeypatch.setattr(Group, "open", open_without_backend)
    return made


def meshes(config: ParallelConfig) -> list[Mesh]:
    """What each worker sees."""
    return [Mesh(Workers(rank, config.world), config) for rank in range(config.world)]


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
def test_coordinates_number_the_workers(config):
    places = [coordinates(rank, config) for rank in range(config.world)]
    ranges = (config.pipeline, config.data, config.sequence, config.tensor)
    assert places == list(itertools.product(*map(range, ranges)))
    for rank in (-1, config.world):
        with pytest.raises(UserError, match=rf"rank is {rank}, and .* {config.world} workers; use 0 to"):
            coordinates(rank, config)


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
def test_members_agree_on_their_groups(config, opened):
    grid = meshes(config)
    for name in NAMES:
        for rank, mesh in enumerate(grid):
            group = getattr(mesh, name)
            assert group.name == name and group.traffic is mesh.traffic is mesh.world.traffic
            assert group.ranks[group.index] == rank and len(set(group.ranks)) == group.size
            for member in group.ranks:
                other = getattr(grid[member], name)
                assert (other.ranks, other._handle) == (group.ranks, group._handle)
            assert group.size == 1 or group._handle is not None


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
def test_sizes_are_the_degrees_and_multiply(config, opened):
    for mesh in meshes(config):
        sizes = {name: getattr(mesh, name).size for name in NAMES}
        assert all(sizes[name] == getattr(config, name) for name in DEGREES)
        assert sizes["tensor"] * sizes["sequence"] * sizes["data"] * sizes["pipeline"] == mesh.world.size
        assert sizes["samples"] == sizes["data"] * sizes["sequence"] == sizes["expert"] * sizes["expert_samples"]
        at_an_end = mesh.pipeline.index in (0, mesh.pipeline.size - 1)
        assert sizes["ends"] == (2 if config.pipeline > 1 and at_an_end else 1)


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
def test_members_differ_in_what_their_group_is_for(config, opened):
    """Along pipeline, data, sequence and tensor, as coordinates counts them."""
    axes = {"pipeline": [0], "data": [1], "expert": [1], "sequence": [2], "tensor": [3], "ends": [0]}
    axes |= {"samples": [1, 2], "expert_samples": [1, 2]}
    for rank, mesh in enumerate(meshes(config)):
        mine = coordinates(rank, config)
        for name in NAMES:
            places = [coordinates(member, config) for member in getattr(mesh, name).ranks]
            assert places == sorted(places)  # what comes from member i is that of place i
            assert all(place[i] == mine[i] for place in places for i in range(4) if i not in axes[name])
        tensor, e = mesh.tensor.ranks, config.expert
        assert list(tensor) == list(range(tensor[0], tensor[0] + len(tensor)))
        copies = [coordinates(member, config)[1] for member in mesh.expert.ranks]
        assert copies == list(range(mine[1] // e * e, mine[1] // e * e + e))
        held = {coordinates(member, config)[1] % e for member in mesh.expert_samples.ranks}
        assert held == {mesh.expert.index}
        assert {coordinates(member, config)[0] for member in mesh.ends.ranks} in ({0, config.pipeline - 1}, {mine[0]})


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
def test_groups_are_made_without_waiting_for_ever(config, opened):
    """A group is there once all its members have come to it, and each worker makes one after the other."""
    meshes(config)
    for made in opened.values():
        assert len({group.ranks for group in made}) == len(made)  # none twice, under two names
    waiting = {rank: collections.deque(group._handle for group in made) for rank, made in opened.items()}
    members = {group._handle: group.ranks for made in opened.values() for group in made}
    while any(waiting.values()):
        ready = [h for h, ranks in members.items() if all(waiting[r] and waiting[r][0] == h for r in ranks)]
        assert ready, f"all wait: {waiting}"
        for handle in ready:
            for rank in members.pop(handle):
                waiting[rank].popleft()


def test_a_mesh_fills_in_what_is_left(opened):
    mesh = Mesh(Workers(5, 8), ParallelConfig(tensor=2, pipeline=2, expert=2))
    assert mesh.config.data == 2 and mesh.world.ranks == tuple(range(8))
    assert mesh.tensor.ranks == (4, 5) and mesh.data.ranks == (5, 7) and mesh.pipeline.ranks == (1, 5)
    assert mesh.data._handle == mesh.samples._handle == mesh.expert._handle == "data (5, 7)"
    assert mesh.ends._handle == mesh.pipeline._handle == "pipeline (1, 5)"
    with pytest.raises(UserError, match="8 workers cannot be divided by"):
        Mesh(Workers(5, 8), ParallelConfig(tensor=3))
    with pytest.raises(UserError, match=r"parallel\.expert = 3 does not divide parallel\.data = 8"):
        Mesh(Workers(5, 8), ParallelConfig(expert=3))
