"""msllm parallel compile: MindSpore's auto-parallel front end, for cards that are not there, on small models."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from msllm.cli import main
from msllm.errors import UserError
from msllm.files import write_json
from msllm.models.presets import config_of
from msllm.parallel.auto.graph import Collective, read_graph
from msllm.parallel.auto.held import held_part, in_file_order
from msllm.parallel.auto.layers import reordered
from msllm.parallel.auto.simulate import environment
from msllm.parallel.config import ParallelConfig
from msllm.parallel.mesh import coordinates
from msllm.parallel.planner.sizes import ModelSizes
from msllm.parallel.plans import plan_for

L, B, T, D, V, TENSOR, DATA = 4, 2, 8, 32, 64, 2, 4
LLAMA = {"model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": L}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": T}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("sizes") / "config.json"
    write_json(path, LLAMA)
    return path


def compiled(model, output, *more) -> dict:
    words = ["parallel", "compile", "--model", str(model), "--cards", str(TENSOR * DATA), "--output", str(output)]
    assert main([*words, "--batch", str(B), "--parallel.tensor", str(TENSOR), *more]) == 0
    return json.loads((output / "compile.json").read_text())


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, compiled(model, folder)["stages"][0]


def test_slices_are_those_of_explicit_mode(model, whole):
    sizes, found = ModelSizes(config_of(model)), whole[1]["parameters"]
    assert found.keys() == {p.name for p in sizes.parameters}
    for p in sizes.parameters:
        assert tuple(found[p.name]["shape"]) == p.shape, p.name
        assert tuple(found[p.name]["card"]) == p.local(TENSOR, 0), p.name
    weights = 4 * sum(math.prod(p.local(TENSOR, 0)) for p in sizes.parameters)
    assert whole[1]["weight_bytes"] == weights and whole[1]["optimizer_bytes"] == 2 * weights


def test_bytes_are_those_of_the_formulas(model, whole):
    """Two sums of the residual stream a layer and direction, as in explicit mode, and each gradient once."""
    sent = {}
    for c in whole[1]["collectives"]:
        assert c["kind"] == "AllReduce" and c["part"] != "redistribution", c
        sent[c["part"], c["dtype"], c["members"]] = (c["count"], c["payload"])
    stream = B * T * D
    assert sent["forward", "BFloat16", TENSOR] == (2 * L, 2 * L * stream * 2)
    assert sent["backward", "BFloat16", TENSOR] == (2 * L, 2 * L * stream * 2)
    # In float32: the embedding's rows; of each token's logits their largest, two sums.
    assert sent["forward", "Float32", TENSOR] == (4, 4 * (stream + 3 * B * T))
    sizes = ModelSizes(config_of(model)).parameters
    cut = [math.prod(p.local(TENSOR, 0)) for p in sizes if p.axis is not None]
    whole_ones = [p.numbers for p in sizes if p.axis is None]
    assert sent["parameters", "Float32", DATA] == (len(cut), 4 * sum(cut))
    assert sent["parameters", "Float32", TENSOR * DATA] == (len(whole_ones), 4 * sum(whole_ones))
    assert sent["norm", "Float32", TENSOR * DATA] == (1, 4)


def test_layers_that_are_worked_out_are_those_that_were_compiled(model, whole, tmp_path, capsys):
    found = compiled(model, tmp_path, "--fast")["stages"][0]
    out = capsys.readouterr().out
    for key in ("parameters", "collectives", "weight_bytes", "optimizer_bytes", "uncut"):
        assert found[key] == whole[1][key], key
    assert "model.layers.*.self_attn.q_proj.weight" in out and "strategy" not in out
    assert (tmp_path / "sharding.png").read_bytes()[:4] == b"\x89PNG"
    import mindspore as ms

    layouts = ms.build_searched_strategy(str(next(whole[0].glob("*strategy.ckpt"))))
    assert list(layouts["model.layers.0.self_attn.o_proj.weight"].tensor_map[0].dim) == [-1, 0]


def test_a_layout_that_does_not_compile_or_fit_is_refused(model, tmp_path, capsys):
    def error(*words) -> str:
        assert main(["parallel", "compile", "--model", str(model), "--output", str(tmp_path), *words]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    for words, message in (
        (["--cards", "8", "--parallel.tensor", "3"], "8 workers cannot be divided by tensor"),
        (["--cards", "8", "--parallel.tensor", "8"], "parallel.tensor = 8 does not divide the 4 attention heads"),
        (["--cards", "8", "--parallel.sequence", "2"], "parallel.sequence is 2 and parallel.mode auto"),
        (["--cards", "8", "--parallel.pipeline", "2"], "wants as many micro-batches as stages"),
        (["--cards", "8", "--length", "9"], "length is 9, expected 1 to 8"),
        (["--cards", "8", "--rank", "8"], "rank is 8, and there are 8 cards; use 0 to 7"),
        (["--cards", "0"], "cards is 0, expected 1 or more"),
        (["--cards", "8", "--fast", "--parallel.search", "sharding_propagation"], "a search looks at all of them"),
        (["--cards", "8", "--parallel.serach", "none"], "unknown option --parallel.serach"),
    ):
        assert error(*words).startswith("error: ") and message in error(*words), words
    assert main(["parallel", "compile", "--model", "lama2-7b", "--cards", "8"]) == 2
    assert "unknown model 'lama2-7b' (did you mean 'llama2-7b'?)" in capsys.readouterr().err


WHOLE_GRADIENTS = """
import sys
from msllm.parallel.auto import simulate
simulate.plain_gradients_of_collectives = lambda: None
simulate.main(*sys.argv[1:])
"""


def test_what_is_left_out_of_the_gradients_of_collectives_leaves_no_trace(model, tmp_path):
    config = {**json.loads(model.read_text()), "num_hidden_layers": 1}
    layout = ParallelConfig(mode="auto", data=2, tensor=2, optimizer=1)
    request = {"parallel": dataclasses.asdict(layout), "rank": 0, "config": config, "length": T, "rows": B}
    request |= {"dtype": "bfloat16", "strategy": str(tmp_path / "strategy.ckpt")}
    write_json(tmp_path / "request.json", request)
    graphs = []
    for way in (["-m", "msllm.parallel.auto.simulate"], ["-c", WHOLE_GRADIENTS]):
        folder = tmp_path / str(len(graphs))
        folder.mkdir()
        command = [sys.executable, *way, str(tmp_path / "request.json"), str(folder / "result.json")]
        subprocess.run(command, env={**os.environ, **environment(folder)}, cwd=folder, check=True)
        (file,) = folder.rglob("*_validate_*.ir")
        lines = file.read_text().split("\n")
        graphs.append([(_operator(line), lines[i + 1]) for i, line in enumerate(lines) if _operator(line)])
    assert len(graphs[0]) > 100 and graphs[0] == graphs[1]


def _operator(line: str) -> tuple[str, ...] | None:
    """The operator of a line of a graph and what it takes, without the names of results, which are numbered."""
    found = re.match(r"  (%\d+)\(.*?\) = (\S+?)\((.*?)\) (?:\{|primitive_attrs)", line)
    return found and found.groups()


GRAPH = """\
%para1_w: <Ref[Tensor[Float32]], (4, 8), ref_key=w, is_parameter>  :  has_default
%para2_exp_avg.w: <Ref[Tensor[Float32]], (4, 8)>  :  has_default
%para3_ids: <Tensor[Int32], (2, 8)>
  %1(a) = AllReduce(%0) {instance name: forward_op_1} primitive_attrs: {rank_list: (0, 1, 2, 3), op: "sum"}
      : (<Tensor[BFloat16], (2, 8)>) -> (<Tensor[BFloat16], (2, 8)>)
      # Fullname with scope: (Default/model)
  %2(b) = AllGather(%1) {instance name: parallel_optimizer_allgather_w} primitive_attrs: {group_rank_ids: (0, 4)}
      : (<Tensor[Float32], (2, 8)>) -> (<Tensor[Float32], (4, 8)>)
      # Fullname with scope: (Default/model)
  %3(c) = Receive() {instance name: x} primitive_attrs: {sr_tag: I64(0), group_rank_ids: (0, 1, 2, 3)}
      : () -> (<Tensor[Float32], (3,)>)
      # Fullname with scope: (Default)
  %4(d) = AllReduce(%3) {instance name: grad_x} primitive_attrs: {group_rank_ids: (0, 1), op: "sum"}
      : (<Tensor[Float32], ()>) -> (<Tensor[Float32], ()>)
      # Fullname with scope: (Gradients/Default/model)
  %5(e) = AllReduce(%4) {instance name: forward_op_2} primitive_attrs: {rank_list: (0), op: "sum"}
      : (<Tensor[Float32], (9)>) -> (<Tensor[Float32], (9)>)
      # Fullname with scope: (Default)
"""


def test_the_graph_is_read(tmp_path):
    (tmp_path / "20_validate_1.ir").write_text(GRAPH)
    graph = read_graph(tmp_path)
    assert graph.parameters == {"w": ("Float32", (4, 8)), "exp_avg.w": ("Float32", (4, 8))}
    assert graph.nbytes("w") == 128
    assert graph.collectives == [
        Collective("forward", "AllReduce", "BFloat16", 4, 1, 32),
        Collective("backward", "AllReduce", "Float32", 2, 1, 4),
        Collective("parameters", "AllGather", "Float32", 2, 1, 128),
        Collective("pipeline", "Receive", "Float32", 2, 1, 12),
    ]
    assert [c.sent for c in graph.collectives] == [48.0, 4.0, 64.0, 0.0]
    with pytest.raises(UserError, match="no checked graph"):
        read_graph(tmp_path / "empty")


@pytest.mark.parametrize("optimizer", [0, 1])
def test_parts_of_cards_make_the_whole_parameter_once(optimizer):
    """What held_part says of each card is what MindSpore's cuts give it: blocks by tensor, then by all who share."""
    heads, width = 4, 8
    config, plan = ParallelConfig(data=2, tensor=2, mode="auto", optimizer=optimizer), plan_for("gpt2")
    sizes = types.SimpleNamespace(n_head=heads)
    model = types.SimpleNamespace(embedding_name="wte", config=sizes)
    shapes = {"h.0.attn.c_attn.weight": (3 * heads * width, 6), "h.0.attn.c_attn.bias": (3 * heads * width,)}
    shapes |= {
        "h.0.mlp.c_proj.weight": (8, 12),
        "h.0.mlp.c_proj.bias": (8,),
        "h.0.ln_1.weight": (8,),
        "wte.weight": (9, 4),
    }
    for name, shape in shapes.items():
        values = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        graph = reordered(values, (3, heads)) if "c_attn" in name else values
        axis = 1 if name.endswith("c_proj.weight") else 0
        by_tensor = ("c_attn" in name or axis == 1) and shape[axis] % 2 == 0
        found = []
        for rank in range(4):
            _, d, _, t = place = coordinates(rank, config)
            part = np.split(graph, 2, axis)[t] if by_tensor else graph
            shares, index = (2, d) if by_tensor else (4, rank)
            if optimizer and part.shape[0] % shares == 0:
                part = np.split(part, shares)[index]
            held, first = held_part(name, shape, part.shape, place, config, plan, model)
            np.testing.assert_array_equal(held.of(values).reshape(part.shape), part, err_msg=f"{name} on {rank}")
            found += part.reshape(-1).tolist() if first else []
        assert sorted(found) == list(range(math.prod(shape))), name
    with pytest.raises(ValueError, match="no cut of the layout explains"):
        held_part("h.0.ln_1.weight", (8,), (3,), (0, 0, 0, 0), config, plan, model)


def test_rows_of_heads_in_the_order_of_the_file():
    assert in_file_order((0, 6), 12, 2) == ((0, 2), (4, 6), (8, 10))
    assert in_file_order((3, 7), 12, 2) == ((5, 6), (8, 10), (2, 3))
