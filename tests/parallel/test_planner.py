"""The planner: sizes by configuration alone, what lives when, formulas, the search and the command."""

import dataclasses
import re

import pytest
import yaml

from msllm import cli
from msllm.cli import main
from msllm.errors import UserError
from msllm.files import read_json
from msllm.models.presets import config_of
from msllm.models.pretrained import model_class
from msllm.parallel.config import ParallelConfig
from msllm.parallel.planner import hardware, memory, search
from msllm.parallel.planner.blocks import Pieces
from msllm.parallel.planner.sizes import Held, ModelSizes
from msllm.parallel.planner.tape import Op, footprint

GPT = {"n_embd": 24, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": 31}
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 31,
}
MODELS = {
    "gpt2": ("gpt2", GPT),
    "gpt2-untied": ("gpt2", {**GPT, "n_inner": 40, "tie_word_embeddings": False}),
    "openai-gpt": ("openai-gpt", GPT),
    "bloom": ("bloom", {"hidden_size": 24, "n_layer": 3, "n_head": 2, "vocab_size": 31}),
    "llama": ("llama", LLAMA),
    "llama-biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4}),
    "even": ("llama", {**LLAMA, "vocab_size": 32}),
}


def model_of(name):
    family, values = MODELS[name]
    cls = model_class({"model_type": family, "architectures": None})
    return cls, cls.config_class.from_dict({"model_type": family, **values})


def sizes_of(name):
    return ModelSizes(model_of(name)[1])


def pieces_of(name, workers=1, rows=2, length=16, **layout):
    parallel = ParallelConfig(**layout).for_workers(workers)
    return Pieces(Held(sizes_of(name), parallel), rows, length)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model_in_its_order(name):
    cls, config = model_of(name)
    built = [(p.name, tuple(p.shape)) for p in cls(config).get_parameters()]
    assert [(p.name, p.shape) for p in ModelSizes(config).parameters] == built


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", [{}, {"tensor": 2}])
def test_operators_and_parameters_agree_on_the_gradients_of_a_block(name, layout):
    pieces = pieces_of(name, workers=layout.get("tensor", 1), **layout)
    block, part = pieces.block(), pieces.held.part
    if name == "llama-biases":  # of projections, whose gradients are beside those of matrices nothing
        assert block.gradients == pytest.approx(4 * sum(part.of(block=1)), rel=0.05)
    else:
        assert block.gradients == 4 * sum(part.of(block=1))


def test_published_models_have_their_number_of_parameters():
    # Rounded as their papers and cards say: 6.74, 13.0, 69.0, 7.07, 0.559 billion.
    for name, billions in (("llama2-7b", 6.74), ("llama2-13b", 13.02), ("llama2-70b", 68.98), ("bloom-7b1", 7.07)):
        assert ModelSizes(config_of(name)).numbers / 1e9 == pytest.approx(billions, abs=0.01)


def test_the_parts_of_all_workers_are_the_whole():
    for layout in ({"tensor": 2, "pipeline": 3}, {"pipeline": 3}, {"tensor": 2}):
        parallel = ParallelConfig(**layout, micro_batches=3).for_workers(parallel_world(layout))
        model = sizes_of("gpt2-untied")
        cut = sum(
            Held(model, parallel, rank).part.numbers[p.name]
            for rank in range(parallel.world)
            for p in Held(model, parallel, rank).part.sizes
            if p.axis is not None
        )
        assert cut == sum(p.numbers for p in model.parameters if p.axis is not None)


def parallel_world(layout):
    return layout.get("tensor", 1) * layout.get("pipeline", 1)


def test_a_tape_lets_go_of_what_nobody_needs_again():
    # x (10) -> a (20), kept -> b (30), for nobody's gradient -> out (5).
    ops = [
        Op("first", ("x",), (("a", 20),), saves=("x",), weights=7),
        Op("second", ("a",), (("b", 30),), saves=("a",), statistics=3),
        Op("third", ("b",), (("out", 5),)),
    ]
    found = footprint(ops, {"x": 10}, [["out"]])
    assert found.kept == 20 + 3 and found.gradients == 7
    assert found.forward == 20 + 3 + 30 + 5
    # Backward: out's gradient and b's; then b's and a's; then a's, the weights' and x's.
    assert found.backward == max(23 + 5 + 30, 23 + 30 + 20, 20 + 7 + 10)


def test_gradients_of_a_tensor_that_two_used_are_added():
    ops = [Op("left", ("x",), (("l", 10),)), Op("right", ("x",), (("r", 10),))]
    two = footprint(ops, {"x": 10}, [["l"], ["r"]])
    assert two.backward == 10 + 10 + 10 + 10  # left's gradient, x's of right, x's of left, their sum
    shared = footprint(ops, {"x": 10}, [["l", "r"]])
    assert shared.backward == two.backward  # one gradient came in, and lives until both have used it


def test_recomputation_keeps_inputs_alone():
    plain, again = (pieces_of("llama", rows=8, recompute=r) for r in (False, True))
    passes = [memory.Passes(p, 0) for p in (plain, again)]
    ends = passes[0].before.kept + passes[0].after.kept
    assert passes[1].kept == ends + (2 * 3 - 1) * plain.stream
    assert passes[0].kept == ends + plain.stream + plain.block(first=True).kept + 2 * plain.block().kept
    assert memory.worker_memory(again).total < memory.worker_memory(plain).total


def test_levels_share_what_the_lesson_says():
    """4 bytes a number: the table of section 6.3, the part that lies there between steps."""
    model = sizes_of("gpt2")
    numbers = model.numbers
    shares = -(-numbers // 4)
    blocks = sum(-(-sum(p.numbers for p in model.parameters if p.place == i) // 4) for i in range(3))
    rest = -(-sum(p.numbers for p in model.parameters if p.place < 0) // 4)
    for level, parameters, moments in (
        (0, numbers, 2 * numbers),
        (1, numbers + shares, 2 * shares),
        (2, numbers + shares, 2 * shares),
        (3, blocks + rest, 2 * (blocks + rest)),
    ):
        held = Held(model, ParallelConfig(optimizer=level).for_workers(4))
        assert memory.static_bytes(held) == (4 * parameters, 4 * moments)


def test_auto_parallel_shares_what_cards_divide():
    config = model_of("llama")[1]
    model = ModelSizes(config)
    whole = 4 * model.numbers
    assert memory.parameter_bytes(config, ParallelConfig(mode="auto").for_workers(4)) == whole
    shared = memory.parameter_bytes(config, ParallelConfig(mode="auto", optimizer=1).for_workers(4))
    odd = [p.numbers for p in model.parameters if p.shape[0] % 4]  # 31 tokens
    assert odd and shared == 4 * (sum(odd) + (model.numbers - sum(odd)) // 4)
    stages = [
        memory.parameter_bytes(config, ParallelConfig(mode="auto", pipeline=3).for_workers(3), s) for s in range(3)
    ]
    assert sum(stages) == whole


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        ({"tensor": 2, "optimizer": 1}, [1_862_784]),
        ({"tensor": 4, "optimizer": 1}, [1_862_784]),
        ({"pipeline": 2, "micro_batches": 2, "optimizer": 1}, [1_862_656, 1_862_912]),
        ({"tensor": 2}, [7_455_744]),
    ],
)
def test_weights_of_auto_parallel_are_those_that_mindspore_left_on_a_card(layout, sizes):
    """The bytes are those that msllm parallel compile read from MindSpore's graphs for 8 cards."""
    values = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = model_class({"model_type": "llama", "architectures": None}).config_class.from_dict(
        {"model_type": "llama", "vocab_size": 1000, **values}
    )
    parallel = ParallelConfig(mode="auto", **layout).for_workers(8)
    assert [memory.parameter_bytes(config, parallel, s) for s in range(parallel.pipeline)] == sizes


def test_more_in_flight_needs_more_memory_and_levels_need_less():
    def total(**layout):
        return memory.worker_memory(pieces_of("llama", workers=12, mode="auto", **layout)).total

    assert total(pipeline=3, micro_batches=3) > total(pipeline=3, micro_batches=3, recompute=True)
    assert total(optimizer=1) < total()
    assert total(tensor=2) < total()


def job(name="even", cards=8, batch=16, length=16, bytes_a_card="1GB", mode="explicit"):
    card = dataclasses.replace(hardware.load("ascend-910").with_memory(bytes_a_card), mode=mode)
    return search.Job(sizes_of(name), card, cards, batch, length, mode)


@pytest.mark.parametrize("mode", ["explicit", "auto"])
def test_the_search_finds_every_layout_that_may_be_run(mode):
    one = job(mode=mode)
    found = search.search(one)
    fit = [c for c in found if c.time]
    assert fit and [c.speed for c in fit] == sorted((c.speed for c in fit), reverse=True)
    for c in fit:
        assert c.parallel.for_workers(8) == c.parallel and c.memory.total <= one.hardware.memory
        c.parallel.check(**one.model.known, length=16, batch=16 // c.parallel.data)
    assert len({c.parallel for c in map(frozen, found)}) == len(found)
    degrees = {(c.parallel.data, c.parallel.tensor, c.parallel.pipeline) for c in fit}
    # Two key-value heads, three layers: by hand. Explicit mode may share the tokens as well.
    by_hand = {(d, t, p) for d in (1, 2, 4, 8) for t in (1, 2) for p in (1, 2)}
    assert {d for d in degrees if d[0] * d[1] * d[2] == 8} == {d for d in by_hand if d[0] * d[1] * d[2] == 8}
    assert degrees <= by_hand
    for c in found:
        assert bool(c.reason) == (c.time is None)


def frozen(candidate):
    return dataclasses.replace(candidate, parallel=dataclasses.astuple(candidate.parallel))


def test_less_memory_drops_layouts_and_says_what_for():
    rich, poor = search.search(job()), search.search(job(bytes_a_card="0.12MB"))
    assert {str(c.parallel) for c in poor if c.time} < {str(c.parallel) for c in rich if c.time}
    dropped = [c for c in poor if c.memory and not c.time]
    for c in dropped:
        term, over = search.too_much(c.memory, 120_000)
        assert c.reason.startswith(f"{term} do not fit") and over == c.memory.total - 120_000 > 0


def test_a_pipeline_waits_and_tensors_talk():
    found = {c.parallel.tensor * 100 + c.parallel.pipeline: c for c in search.search(job(cards=2)) if c.time}
    assert found[201].time.messages["tensor"] > 0 == found[201].time.waiting
    assert found[102].time.messages["pipeline"] > 0 < found[102].time.waiting


def test_cards_beyond_a_node_talk_over_the_slower_wire():
    card = hardware.load("ascend-910")
    assert card.link(8) == card.intra > card.link(9) == card.inter
    assert card.with_topology("16:20:5").link(16) == 20e9 and card.with_topology("16").link(17) == card.inter


def test_operations_are_six_a_parameter_and_token():
    """Kaplan et al. 2020, section 2.1: without the embedding, and attention's on top."""
    from msllm.parallel.planner.cost import model_operations

    model = ModelSizes(config_of("llama2-7b"))
    embedding = model.vocab_size * model.width
    found = model_operations(model, 1000, 4096)
    attention = 1000 * 3 * 32 * 2 * 4096 * 4096
    norms = 65 * 4096
    assert found == pytest.approx(6 * (model.numbers - embedding - norms) * 1000 + attention, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "size"), [("32GB", 32 * 10**9), ("32GiB", 32 * 2**30), ("32", 32 * 10**9), ("0.5 tb", 5 * 10**11)]
)
def test_sizes_are_read(text, size):
    assert hardware.parse_bytes(text, "card_memory") == size


def test_a_file_of_hardware_is_read_and_its_mistakes_named(tmp_path):
    values = yaml.safe_load(hardware.PRESETS.read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"mine": {**values["ascend-910"], "tflops": 100}, "other": values["ascend-910b"]}))
    assert hardware.load(str(path)).peak == 1e14 and hardware.load(f"{path}:other").name == "other"
    for broken, message in (
        ({**values["ascend-910"], "tflop": 1}, "unknown key 'tflop' (did you mean 'tflops'?)"),
        ({**values["ascend-910"], "tflops": 0}, "tflops of mine is 0"),
        ({k: v for k, v in values["ascend-910"].items() if k != "memory"}, "mine lacks memory"),
    ):
        path.write_text(yaml.safe_dump({"mine": broken}))
        with pytest.raises(UserError, match=re.escape(message)):
            hardware.load(str(path))


PLAN = ["parallel", "plan", "--model", "llama2-7b", "--hardware", "ascend-910"]


@pytest.mark.parametrize("words", [["plan"], ["compile", "--parallel.tensor", "2"]])
def test_an_output_that_is_a_file_is_refused(words, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert main(["parallel", *words, "--model", "gpt2", "--cards", "2", "--output", str(tmp_path / "file")]) == 2
    assert f"error: cannot write {tmp_path / 'file'}: File exists" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_the_command_shows_the_best_and_writes_a_run(tmp_path, capsys):
    options = ["--cards", "8", "--batch", "32", "--seq", "2048", "--card_memory", "32GB", "--top", "3"]
    assert main([*PLAN, *options, "--choose", "2", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "6,738,415,616 parameters; 8 x ascend-910 of 29.8 GiB, auto mode" in printed
    assert re.search(r"\n1  .*\n2  .*\n3  ", printed) and "with recompute" in printed
    layouts = read_json(tmp_path / "plan.json")["layouts"]
    second = [c for c in layouts if not c["dropped"]][1]
    assert all(c["dropped"] for c in layouts if "seconds" not in c)
    run = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert run["parallel"]["data"] == second["data"] and run["parallel"]["mode"] == "auto"
    assert run["per_device_train_batch_size"] * second["data"] == 32 and run["block_size"] == 2048
    # As msllm pretrain reads it.
    parser, _ = cli._parser("pretrain", cli._function("pretrain"))
    words = ["--config", str(tmp_path / "run.yaml"), "--data", "tokens", "--output", "out"]
    read = parser.instantiate_classes(parser.parse_args(words)).as_dict()
    assert read["config_name"] == "llama2-7b" and read["parallel"].for_workers(8) == read["parallel"]
    assert str(read["parallel"]) in second["layout"]


def test_an_impossible_plan_says_what_is_missing_and_how_many_cards_would_do(tmp_path, capsys):
    options = ["--card_memory", "8GB", "--batch", "64", "--seq", "2048", "--output", str(tmp_path)]
    assert main([*PLAN, *options, "--cards", "4"]) == 2
    error = capsys.readouterr().err.strip()
    found = re.fullmatch(
        r"error: no layout fits: the least, (.+), needs ([\d.]+) GiB and a card has 7\.5, ([\d.]+) too much; "
        r"its (\w+) are what goes over; (\d+) cards would do, as (.+)",
        error,
    )
    assert found, error
    assert float(found[2]) - 7.45 == pytest.approx(float(found[3]), abs=0.11)
    enough = int(found[5])
    assert main([*PLAN, *options, "--cards", str(enough)]) == 0
    assert main([*PLAN, *options, "--cards", str(enough - 8)]) == 2
    assert not (tmp_path / "plan.json").read_text().startswith("error")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "llama2-7c"], "unknown model 'llama2-7c' (did you mean 'llama2-7b'?)"),
        (["--hardware", "ascend-910c"], "unknown hardware 'ascend-910c' (did you mean 'ascend-910'?)"),
        (["--card_memory", "32QB"], "card_memory is '32QB', expected a size such as 32GB"),
        (["--topology", "8:a"], "topology is '8:a', expected the cards of a node"),
        (["--seq", "9000"], "seq is 9000, expected 1 to 4096, what the model takes"),
        (["--cards", "0"], "cards is 0, expected 1 or more"),
        (["--choose", "900000"], "layouts fit; use 1 to"),
    ],
)
def test_wrong_options_are_named(options, message, tmp_path, capsys):
    given = {"--model": "llama2-7b", "--cards": "8", "--batch": "8", "--output": str(tmp_path)}
    given |= dict(zip(options[::2], options[1::2]))
    assert main(["parallel", "plan", *(word for pair in given.items() for word in pair)]) == 2
    assert message in capsys.readouterr().err
