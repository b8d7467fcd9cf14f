"""Checkpoints for MindSpore: its own transform_checkpoints merges them to the whole and cuts them anew, bit by bit."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from msllm.errors import UserError
from msllm.parallel.mindspore_strategy import export, write_strategy
from msllm.parallel.sharded import finish, write_part
from msllm.parallel.slices import Slice
from tests.parallel.test_sharded import plan, save, whole_model


def merged(folder, name="rank_0") -> dict[str, np.ndarray]:
    """The one checkpoint file of a rank folder."""
    (file,) = (folder / name).glob("*.ckpt")
    return {key: value.asnumpy() for key, value in ms.load_checkpoint(str(file)).items()}


def transform(source: Path, target: Path, from_strategy, to_strategy) -> None:
    names = [None if path is None else str(path) for path in (from_strategy, to_strategy)]
    ms.transform_checkpoints(str(source), str(target), "x", *names)


@pytest.fixture(scope="module")
def model():
    return whole_model(np.random.default_rng(0))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """2x2 workers, with a second copy of the model: 8 in all."""
    folder = tmp_path_factory.mktemp("exported")
    save(folder / "source", model, plan(tensor=2, pipeline=2, data=2))
    strategy = export(folder / "source", folder / "mindspore")
    return folder / "mindspore", strategy


def check_whole(folder, model, shapes):
    got = merged(folder)
    expected = {name: array for (kind, name), array in model.items() if kind == "param"}
    assert got.keys() == expected.keys() == shapes.keys()
    for name, array in expected.items():
        assert shapes[name] == list(array.shape)
        assert got[name].dtype == array.dtype and np.array_equal(got[name].reshape(shapes[name]), array), name


def test_mindspore_merges_our_slices(exported, model, tmp_path):
    folder, strategy = exported
    assert sorted(p.name for p in folder.glob("rank_*")) == [f"rank_{i}" for i in range(8)]
    table = ms.build_searched_strategy(str(strategy))
    layout = table["0-h.0.attn.weight"]
    assert list(layout.dev_matrix[0].dim) == [2, 2, 1] and list(layout.tensor_map[0].dim) == [-1, 1, -1]
    assert list(table["1-h.3.proj.weight"].tensor_map[0].dim) == [-1, 1]
    assert list(table["1-norm.weight"].tensor_map[0].dim) == [-1]
    assert {"0-wte.weight", "1-wte.weight"} <= set(table)  # the first and the last stage hold it
    transform(folder, tmp_path / "whole", strategy, None)
    check_whole(tmp_path / "whole", model, json.loads((folder / "shapes.json").read_text()))


@pytest.mark.parametrize("target", [{"tensor": 4}, {"tensor": 2, "data": 2}, {"tensor": 4, "pipeline": 2}])
def test_mindspore_cuts_them_anew_as_we_would(exported, model, target, tmp_path):
    folder, strategy = exported
    layout = plan(**target)
    write_strategy(tmp_path / "target.ckpt", [[part for kind, part in parts if kind == "param"] for parts in layout])
    transform(folder, tmp_path / "other", strategy, tmp_path / "target.ckpt")
    save(tmp_path / "expected", model, layout)
    export(tmp_path / "expected", tmp_path / "expected_rank")
    for rank, parts in enumerate(layout):
        got, expected = merged(tmp_path / "other", f"rank_{rank}"), merged(tmp_path / "expected_rank", f"rank_{rank}")
        for _, part in (p for p in parts if p[0] == "param"):
            array = part.of(model["param", part.name])
            assert np.array_equal(got[part.name], expected[part.name]), (rank, part.name)
            assert np.array_equal(got[part.name].reshape(array.shape), array), (rank, part.name)
    transform(tmp_path / "other", tmp_path / "whole", tmp_path / "target.ckpt", None)
    check_whole(tmp_path / "whole", model, json.loads((folder / "shapes.json").read_text()))


def test_workers_without_parameters_are_left_out(model, tmp_path):
    layout = plan(tensor=2, data=2)
    layout[2:] = [[part for part in parts if part[0] != "param"] for parts in layout[2:]]
    save(tmp_path / "source", model, layout)
    strategy = export(tmp_path / "source", tmp_path / "mindspore")
    assert sorted(p.name for p in (tmp_path / "mindspore").glob("rank_*")) == ["rank_0", "rank_1"]
    transform(tmp_path / "mindspore", tmp_path / "whole", strategy, None)
    check_whole(tmp_path / "whole", model, json.loads((tmp_path / "mindspore" / "shapes.json").read_text()))


def test_ranges_that_follow_on_each_other_are_one_block(tmp_path):
    """BLOOM's query_key_value: each head's q, k and v lie together."""
    whole = np.arange(96 * 2, dtype=np.float32).reshape(96, 2)
    parts = [Slice("w", (96, 2), 0, tuple((i, i + 24) for i in range(start, start + 48, 24))) for start in (0, 48)]
    for rank, part in enumerate(parts):
        write_part(tmp_path / "source", rank, [("param", part, part.of(whole))])
    finish(tmp_path / "source", 2, {})
    strategy = export(tmp_path / "source", tmp_path / "mindspore")
    transform(tmp_path / "mindspore", tmp_path / "whole", strategy, None)
    assert np.array_equal(merged(tmp_path / "whole")["w"], whole)


def rows(*ranges):
    return [Slice("w", (12, 4), 0, ranges)]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([[Slice("w", (12, 4), flat=(0, 24))], [Slice("w", (12, 4), flat=(24, 48))]], "shares of the flattened w"),
        ([rows((0, 5)), rows((5, 12))], r"rows \(\(0, 5\),\), \(\(5, 12\),\) along axis 0"),
        ([rows((0, 6))], "equal blocks"),  # half of it is held by nobody
        ([rows((6, 12)), rows((0, 6))], "in the order of workers"),
        ([rows((0, 6)), rows((6, 12)), rows((0, 6))], "in the order of workers"),
        ([rows((0, 3), (4, 7), (8, 10)), rows((3, 4), (7, 8), (10, 12))], "equal blocks"),
        ([rows((0, 6)), [Slice("w", (12, 4), 1, ((0, 2),))]], "equal blocks"),
        ([[*rows((0, 6)), *rows((6, 12))]], "worker 0 holds several parts of w"),
        ([[Slice("a", (2,))], [Slice("a", (2,))], [Slice("b", (2,))]], "stages of 2, 1 workers"),
        ([[Slice("a-b", (2,))]], "'-' of parameter a-b"),
        (
            [[*rows((0, 6)), Slice("a", (2,))], [*rows((6, 12)), Slice("a", (2,))], rows((0, 12)), rows((0, 12))],
            "cut w in different ways",
        ),
    ],
)
def test_what_mindspore_cannot_say_is_refused(layout, message, tmp_path):
    with pytest.raises(UserError, match=message) as e:
        write_strategy(tmp_path / "s.ckpt", layout)
    assert "\n" not in str(e.value) and not (tmp_path / "s.ckpt").exists()


def test_a_refused_export_leaves_nothing(model, tmp_path):
    save(tmp_path / "source", model, plan(data=2, zero=3))
    with pytest.raises(UserError, match=r"msllm\.parallel\.sharded\.reshard"):
        export(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is not empty"):
        export(tmp_path / "source", tmp_path / "source")
    write_part(tmp_path / "empty", 0, [])
    finish(tmp_path / "empty", 1, {})
    with pytest.raises(UserError, match="holds no parameters"):
        export(tmp_path / "empty", tmp_path / "out")
