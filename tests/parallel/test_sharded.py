"""Sharded checkpoints: any layout of workers reads what any other wrote, bit by bit; what is damaged is refused."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file

from msllm.errors import UserError
from msllm.parallel.sharded import ShardedCheckpoint, finish, reshard, write_part
from msllm.parallel.slices import Slice
from msllm.training import checkpoint as training

D, F, V, LAYERS = 8, 20, 27, 4
# (shape, axis that tensor parallelism cuts, or None; how many matrices are packed along it)
LAYER = {
    "attn.weight": ((3 * D, D), 0, 3),
    "attn.bias": ((3 * D,), 0, 3),
    "out.weight": ((D, D), 1, 1),
    "out.bias": ((D,), None, 1),
    "up.weight": ((F, D), 0, 1),
    "proj.weight": ((D, F), 1, 1),
    "ln.weight": ((D,), None, 1),
}
SPEC = {f"h.{i}.{name}": spec for i in range(LAYERS) for name, spec in LAYER.items()}
SPEC |= {"wte.weight": ((4 * V, D), 0, 1), "norm.weight": ((D,), None, 1)}
KINDS = ("param", "exp_avg", "exp_avg_sq")


def whole_model(rng) -> dict[tuple[str, str], np.ndarray]:
    """(kind, name) -> the whole array."""
    return {(k, n): rng.standard_normal(s[0]).astype(np.float32) for k in KINDS for n, s in SPEC.items()}


def stage_of(name: str, pipeline: int) -> list[int]:
    """The stages that hold a parameter; the embedding is the head too."""
    if name == "wte.weight":
        return sorted({0, pipeline - 1})
    return [int(name.split(".")[1]) * pipeline // LAYERS if name.startswith("h.") else pipeline - 1]


def tensor_slice(name: str, rank: int, world: int) -> Slice:
    """The part of a parameter of one of ``world`` tensor-parallel workers."""
    shape, axis, packed = SPEC[name]
    if axis is None or (world == 1 and packed == 1):
        return Slice(name, shape)
    part = shape[axis] // packed
    block = part // world
    assert block * world == part
    return Slice(
        name, shape, axis, tuple((p * part + rank * block, p * part + (rank + 1) * block) for p in range(packed))
    )


def share(part: Slice, rank: int, world: int) -> Slice:
    """An uneven share of ``part``: all but the last have as many elements, rounded up."""
    size = -(-part.size // world)
    flat = min(rank * size, part.size), min((rank + 1) * size, part.size)
    return Slice(part.name, part.shape, part.axis, part.ranges, flat)


def plan(tensor=1, pipeline=1, data=1, zero=0) -> list[list[tuple[str, Slice]]]:
    """What each worker holds; the order of workers is pipeline, data, tensor from the outside."""
    workers = []
    for stage in range(pipeline):
        for copy in range(data):
            for t in range(tensor):
                parts = [tensor_slice(n, t, tensor) for n in SPEC if stage in stage_of(n, pipeline)]
                shared = {kind: zero >= (3 if kind == "param" else 1) for kind in KINDS}
                workers.append([(k, share(p, copy, data) if shared[k] else p) for k in KINDS for p in parts])
    return workers


def save(folder, model, layout, **info) -> None:
    for rank, parts in enumerate(layout):
        write_part(folder, rank, [(kind, part, part.of(model[kind, part.name])) for kind, part in parts])
    finish(folder, len(layout), info)


def check(folder, model, layout) -> None:
    """The files hold exactly the slices of the whole, and the whole can be put together again."""
    checkpoint = ShardedCheckpoint(folder)
    assert checkpoint.world == len(layout)
    for rank, parts in enumerate(layout):
        tensors = load_file(folder / f"part-{rank:05d}.safetensors")
        assert len(tensors) == len(parts)
        for kind, part in parts:
            expected = part.of(model[kind, part.name])
            got = tensors[f"{kind}/{part.name}"]
            assert got.dtype == np.float32 and got.shape == part.local_shape and np.array_equal(got, expected)
            assert np.array_equal(checkpoint.read(kind, part), expected)
    for (kind, name), expected in model.items():
        assert np.array_equal(checkpoint.full(kind, name), expected)


@pytest.fixture(scope="module")
def model():
    return whole_model(np.random.default_rng(0))


@pytest.fixture
def saved(model, tmp_path):
    """2x2 workers in tmp_path/checkpoint-10."""
    save(tmp_path / "checkpoint-10", model, plan(tensor=2, pipeline=2), step=10, strategy="tp2 pp2")
    return tmp_path / "checkpoint-10"


ROUND = [{"tensor": 2, "pipeline": 2}, {"tensor": 4}, {}, {"tensor": 2, "pipeline": 2}]
SHARED = [
    {"tensor": 2, "data": 2, "zero": 1},
    {"data": 3, "zero": 3},
    {"tensor": 2, "pipeline": 2, "data": 3, "zero": 1},
    {"tensor": 4, "data": 2, "zero": 2},
    {},
    {"data": 5, "zero": 3},
    {"tensor": 2, "pipeline": 2},
]


@pytest.mark.parametrize("layouts", [ROUND, SHARED], ids=["tensor-pipeline", "zero"])
def test_a_model_goes_from_layout_to_layout(layouts, model, tmp_path):
    save(tmp_path / "0", model, plan(**layouts[0]), step=7, strategy="first")
    check(tmp_path / "0", model, plan(**layouts[0]))
    for i, layout in enumerate(layouts[1:], 1):
        reshard(tmp_path / f"{i - 1}", tmp_path / f"{i}", plan(**layout), {"strategy": str(i)})
        check(tmp_path / f"{i}", model, plan(**layout))
        assert ShardedCheckpoint(tmp_path / f"{i}").info == {"step": 7, "strategy": str(i)}
    last = {p.name: p.read_bytes() for p in (tmp_path / f"{len(layouts) - 1}").glob("*.safetensors")}
    save(tmp_path / "again", model, plan(**layouts[-1]))
    assert last == {p.name: p.read_bytes() for p in (tmp_path / "again").glob("*.safetensors")}


def test_of_several_copies_the_first_is_taken(tmp_path):
    for rank in range(3):
        write_part(tmp_path, rank, [("param", Slice("w", (4,), 0, ((rank, rank + 2),)), np.full(2, rank, np.float32))])
    finish(tmp_path, 3, {})
    assert ShardedCheckpoint(tmp_path).full("param", "w").tolist() == [0, 0, 1, 2]


def test_only_what_is_asked_for_is_in_memory(tmp_path):
    whole = np.random.default_rng(0).standard_normal((2048, 512)).astype(np.float32)  # 4 MiB
    names = [f"w{i}" for i in range(12)]
    for rank in range(2):
        parts = [Slice(n, whole.shape, 0, ((rank * 1024, (rank + 1) * 1024),)) for n in names]
        write_part(tmp_path / "two", rank, [("param", part, part.of(whole)) for part in parts])
    finish(tmp_path / "two", 2, {})
    checkpoint = ShardedCheckpoint(tmp_path / "two")
    column = Slice("w3", whole.shape, 1, ((64, 128),))
    checkpoint.read("param", column)  # checksums are compared, in pieces of a fixed size
    tracemalloc.start()
    got = checkpoint.read("param", column)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * got.nbytes
    tracemalloc.reset_peak()
    reshard(tmp_path / "two", tmp_path / "one", [[("param", Slice(n, whole.shape)) for n in names]], {})
    assert tracemalloc.get_traced_memory()[1] < 14 * 2**20  # of 48 MiB: two tensors, and the half that is read
    tracemalloc.stop()
    assert np.array_equal(ShardedCheckpoint(tmp_path / "one").full("param", "w5"), whole)


def test_writing_checks_what_it_is_given(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(3,\), its part \(2,\)"):
        write_part(tmp_path, 0, [("param", Slice("w", (2,)), np.zeros(3, np.float32))])
    with pytest.raises(ValueError, match="complex64"):
        write_part(tmp_path, 0, [("param", Slice("w", (2,)), np.zeros(2, np.complex64))])
    assert not list(tmp_path.iterdir())


def test_an_unfinished_checkpoint_is_refused(model, tmp_path):
    layout, folder = plan(tensor=2), tmp_path / "checkpoint-100"
    save(folder, model, layout, step=100)
    kind, part = layout[0][0]
    write_part(folder, 0, [(kind, part, part.of(model[kind, part.name]))])  # written anew: a crash
    with pytest.raises(UserError, match=r"checkpoint-100 lacks layout\.json.*; give an earlier checkpoint"):
        ShardedCheckpoint(folder)
    (folder / "part-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be finished: it lacks part-00001\.safetensors of 2 workers"):
        finish(folder, 2, {})


def test_a_run_goes_on_from_parts_that_its_trainer_has_finished(model, tmp_path):
    for step in (5, 10, 100):
        save(tmp_path / f"checkpoint-{step}", model, plan(tensor=2), step=step)
    assert training.find(tmp_path) == []
    for step in (10, 5):
        training.finish(tmp_path, training.TrainerState(step=step, best_loss=1.5))
    assert training.find(tmp_path) == [tmp_path / "checkpoint-5", tmp_path / "checkpoint-10"]
    assert training.load(tmp_path / "checkpoint-10") == (training.TrainerState(step=10, best_loss=1.5), {})
    assert training.source(tmp_path, "auto", False) == tmp_path / "checkpoint-10"
    with pytest.raises(UserError, match=r"checkpoint-100 is no checkpoint of a run: it lacks trainer_state\.json"):
        training.load(tmp_path / "checkpoint-100")
    check(tmp_path / "checkpoint-10", model, plan(tensor=2))


def test_parts_of_a_larger_run_are_removed_when_fewer_workers_finish(model, tmp_path):
    layout = plan(tensor=4)
    save(tmp_path / "c", model, layout)
    save(tmp_path / "c", model, plan(tensor=2))
    check(tmp_path / "c", model, plan(tensor=2))


def _missing(folder):
    (folder / "part-00002.safetensors").unlink()


def _foreign_layout(folder):
    shutil.copy(folder.parent / "other" / "part-00001.json", folder)


def _foreign_part(folder):
    for name in ("part-00001.json", "part-00001.safetensors"):
        shutil.copy(folder.parent / "other" / name, folder)


def _foreign_tensors(folder):
    shutil.copy(folder.parent / "other" / "part-00001.safetensors", folder)


def _other_rank(folder):
    shutil.copy(folder / "part-00000.json", folder / "part-00001.json")


def _too_many(folder):
    shutil.copy(folder / "part-00000.json", folder / "part-00004.json")


def _cut(folder):
    file = folder / "part-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def _bit(folder):
    content = bytearray((folder / "part-00003.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "part-00003.safetensors").write_bytes(content)


def _layout(change):
    def damage(folder):
        values = json.loads((folder / "layout.json").read_text())
        change(values)
        (folder / "layout.json").write_text(json.dumps(values))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, r"checkpoint-10 lacks part-00002\.safetensors of 4 workers; copy it"),
        (_foreign_layout, r"part-00001\.json is damaged or of another run: its checksum"),
        (_foreign_part, r"part-00001\.json is damaged or of another run: its checksum"),
        (_foreign_tensors, r"part-00001\.safetensors is damaged or of another run: its checksum"),
        (_other_rank, r"part-00001\.json is damaged or of another run"),
        (_too_many, r"part-00004\.json does not belong to this checkpoint of 4 workers"),
        (_cut, r"part-00003\.safetensors has \d+ bytes, part-00003\.json says"),
        (_bit, r"part-00003\.safetensors is damaged or of another run"),
        (_layout(lambda v: v.update(world=3)), r"layout\.json says 3 workers and lists 4"),
        (_layout(lambda v: v.pop("info")), r"layout\.json lacks world, layouts or info"),
    ],
)
def test_bad_folders_are_refused_in_one_line(damage, message, saved, tmp_path):
    save(tmp_path / "other", whole_model(np.random.default_rng(1)), plan(tensor=2, pipeline=2))
    damage(saved)
    with pytest.raises(UserError, match=message) as e:
        checkpoint = ShardedCheckpoint(saved)
        for name in checkpoint.names("param"):
            checkpoint.full("param", name)
    assert "\n" not in str(e.value)


def test_a_part_written_under_another_number_cannot_be_finished(saved):
    for end in ("json", "safetensors"):
        shutil.copy(saved / f"part-00000.{end}", saved / f"part-00001.{end}")
    with pytest.raises(UserError, match=r"part-00001\.json was written by worker 0; copy the file of worker 1"):
        finish(saved, 4, {})


def test_what_cannot_be_read_is_named(saved, tmp_path):
    checkpoint = ShardedCheckpoint(saved)
    assert checkpoint.info == {"step": 10, "strategy": "tp2 pp2"} and sorted(checkpoint.names("exp_avg")) == sorted(
        SPEC
    )
    with pytest.raises(UserError, match=r"no param of parameter h\.0\.ln\.weigth \(did you mean 'h\.0\.ln\.weight'"):
        checkpoint.full("param", "h.0.ln.weigth")
    with pytest.raises(UserError, match=r"no momentum of parameter norm\.weight"):
        checkpoint.full("momentum", "norm.weight")
    with pytest.raises(UserError, match=r"h\.0\.up\.weight has shape \(20, 8\), \(20, 9\) is asked for"):
        checkpoint.read("param", Slice("h.0.up.weight", (20, 9), 0, ((0, 3),)))
    with pytest.raises(UserError, match="is not empty"):
        reshard(saved, saved, plan(), {})
    check(saved, whole_model(np.random.default_rng(0)), plan(tensor=2, pipeline=2))


def test_elements_that_nobody_holds_are_counted(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    parts = [Slice("w", (4, 6), 1, ((0, 2),)), Slice("w", (4, 6), 0, ((2, 3),), (1, 6))]
    write_part(tmp_path, 0, [("param", part, part.of(whole)) for part in parts])
    finish(tmp_path, 1, {})
    checkpoint = ShardedCheckpoint(tmp_path)
    with pytest.raises(UserError, match=r"no worker holds 12 elements of param of w \(4, 6\), first 0:2, 2:6"):
        checkpoint.full("param", "w")
    held = Slice("w", (4, 6), 0, ((2, 3),))
    assert np.array_equal(checkpoint.read("param", held), whole[2:3])
    write_part(tmp_path, 0, [("param", Slice("w", (4, 6), flat=(0, 0)), np.zeros(0, np.float32))])
    finish(tmp_path, 1, {})
    with pytest.raises(UserError, match=r"no worker holds 6 elements of param of w \(4, 6\), first 2:3, 0:6"):
        ShardedCheckpoint(tmp_path).read("param", held)


def test_workers_whose_models_differ_are_refused(tmp_path):
    for rank, size in enumerate((2, 3)):
        write_part(tmp_path, rank, [("param", Slice("w", (size,)), np.zeros(size, np.float32))])
    finish(tmp_path, 2, {})
    with pytest.raises(UserError, match=r"worker 1 holds param of w of float32 \(3,\), worker 0 of float32 \(2,\)"):
        ShardedCheckpoint(tmp_path).full("param", "w")
