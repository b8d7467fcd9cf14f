"""Plans: they name what is in each family's blocks and body, and with embeddings, head and norms all of it."""

import pytest
from mindspore import Tensor, nn

from msllm.errors import UserError
from msllm.layers import Embedding, LayerNorm, Linear, RMSNorm
from msllm.layers.moe import MoE
from msllm.models.bloom import BloomForCausalLM
from msllm.models.causal_lm import CausalLM
from msllm.models.gpt2 import GPT2LMHeadModel
from msllm.models.llama import LlamaForCausalLM
from msllm.models.mixtral import MixtralForCausalLM
from msllm.models.openai_gpt import OpenAIGPTLMHeadModel
from msllm.parallel.config import ParallelConfig
from msllm.parallel.plans import PLANS, Plan, plan_for, sizes

GPT = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 9, "vocab_size": 31}
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "vocab_size": 31,
}
# name -> (class, config, what sizes returns but for the vocabulary)
MODELS = {
    "gpt2": (GPT2LMHeadModel, GPT, (3, 3, 2, 96, 0)),
    "gpt2-inner": (GPT2LMHeadModel, {**GPT, "n_inner": 40, "tie_word_embeddings": False}, (3, 3, 2, 40, 0)),
    "openai-gpt": (OpenAIGPTLMHeadModel, {**GPT, "n_layer": 3}, (3, 3, 3, 96, 0)),
    "bloom": (BloomForCausalLM, {"hidden_size": 24, "n_layer": 2, "n_head": 4, "vocab_size": 31}, (4, 4, 2, 96, 0)),
    "llama": (LlamaForCausalLM, LLAMA, (6, 6, 2, 20, 0)),
    "llama-grouped": (
        LlamaForCausalLM,
        {**LLAMA, "num_key_value_heads": 2, "head_dim": 5, "attention_bias": True, "mlp_bias": True},
        (6, 2, 2, 20, 0),
    ),
    "mixtral": (MixtralForCausalLM, {**LLAMA, "num_key_value_heads": 3, "num_local_experts": 4}, (6, 3, 2, 20, 4)),
}


@pytest.fixture(scope="module", params=MODELS)
def built(request) -> tuple[CausalLM, Plan, dict[str, int]]:
    """A model, its plan, and what sizes is to return."""
    cls, values, expected = MODELS[request.param]
    model = cls(cls.config_class.from_dict(values))
    names = ("heads", "kv_heads", "layers", "inner", "experts")
    return model, plan_for(model.config.model_type), {**dict(zip(names, expected, strict=True)), "vocab_size": 31}


def cell(block: nn.Cell, path: str) -> nn.Cell:
    """The cell that a plan names; fails where there is none."""
    for name in path.split("."):
        block = block.name_cells()[name]
    return block


def ids_of(*cells: nn.Cell) -> list[int]:
    return [id(p) for c in cells for p in c.get_parameters()]


def norms_in(parent: nn.Cell) -> list[nn.Cell]:
    return [c for _, c in parent.cells_and_names() if isinstance(c, LayerNorm | RMSNorm)]


def test_each_family_has_a_plan():
    assert {cls.config_class().model_type for cls, _, _ in MODELS.values()} == PLANS.keys()
    assert all(plan_for(name) is plan for name, plan in PLANS.items())
    with pytest.raises(UserError, match=r"a bert cannot be cut into parts; .*data alone, or one of gpt2, openai-gpt"):
        plan_for("bert")


def test_a_plan_and_norms_cover_each_block_once(built):
    model, plan, _ = built
    blocks = model.body.name_cells()[plan.blocks]
    assert isinstance(blocks, nn.CellList)
    for block in blocks:
        linears = [cell(block, path) for path in (*plan.columns, *plan.rows)]
        assert all(type(linear) is Linear for linear in linears)
        experts = [cell(block, plan.experts)] if plan.experts else []
        assert all(type(layer) is MoE for layer in experts)
        covered = ids_of(*linears, *experts, *norms_in(block))
        assert sorted(covered) == sorted(ids_of(block)) and len(set(covered)) == len(covered)


def test_columns_lead_in_and_rows_lead_out(built):
    """What one side of the attention or of the feed-forward layer is cut into is what the other is cut into."""
    model, plan, expected = built
    D, attention = model.embedding.weight.shape[1], plan.counts[0][0]
    for block in getattr(model.body, plan.blocks):
        ways_out = {path.rpartition(".")[0]: cell(block, path).weight.shape for path in plan.rows}
        assert len(ways_out) == len(plan.rows) == (1 if plan.experts else 2) and attention in ways_out
        assert {path.rpartition(".")[0] for path in plan.columns} == ways_out.keys()
        assert all(rows == D for rows, _ in ways_out.values())
        for path, matrices in plan.columns.items():
            (rows, columns), parent = cell(block, path).weight.shape, path.rpartition(".")[0]
            assert columns == D and rows % matrices == 0
            if parent == attention:  # each worker gets whole heads
                assert rows // matrices % expected["kv_heads"] == ways_out[parent][1] % expected["heads"] == 0
            else:
                assert rows == ways_out[parent][1] == expected["inner"]


def test_packed_matrices_are_those_of_queries_keys_and_values(built):
    """What is cut as one matrix holds whole heads, one after the other; what is cut as three has three of them."""
    model, plan, _ = built
    packed = {path: count for path, count in plan.columns.items() if count > 1}
    assert packed == ({"attn.c_attn": 3} if "gpt" in model.config.model_type else {})
    for block in getattr(model.body, plan.blocks):
        for path in packed:
            assert cell(block, path).weight.shape[0] == 3 * model.embedding.weight.shape[1]


def test_counts_are_the_numbers_of_heads(built):
    model, plan, expected = built
    for block in getattr(model.body, plan.blocks):
        counts = {attribute: getattr(cell(block, path), attribute) for path, attribute in plan.counts}
        assert counts == {name: expected[name] for name in counts} and "heads" in counts
        # Every attribute of the attention that counts heads is in the plan, or a worker would go on with all of them.
        (attention,) = {path for path, _ in plan.counts}
        assert counts.keys() == {n for n in ("heads", "kv_heads") if hasattr(cell(block, attention), n)}


def test_the_body_is_embeddings_blocks_and_what_comes_last(built):
    model, plan, expected = built
    body, cells = model.body, model.body.name_cells()
    last = [cells[name] for name in plan.last]
    assert all(isinstance(c, LayerNorm | RMSNorm) for c in last)
    tables = [cells[plan.positions]] if plan.positions else []
    assert all(type(table) is Embedding and table is not model.embedding for table in tables)
    first = [model.embedding, *tables, *(c for c in norms_in(body) if c in cells.values() and c not in last)]
    head = [] if model.tied else [model.lm_head]
    covered = ids_of(*first, cells[plan.blocks], *last, *head)
    assert sorted(covered) == sorted(ids_of(model)) and len(set(covered)) == len(covered)
    order = list(cells.values())  # Stage takes what is not last for what comes first
    assert all(order.index(c) > order.index(cells[plan.blocks]) for c in last)
    assert all(order.index(c) < order.index(cells[plan.blocks]) for c in first)
    tensors = {name: value for name, value in vars(body).items() if isinstance(value, Tensor)}
    assert all(value.shape == (expected["heads"],) for value in tensors.values())
    assert tuple(tensors) == plan.per_head == (("slopes",) if model.config.model_type == "bloom" else ())


def test_sizes_are_those_of_the_model(built):
    model, plan, expected = built
    found = sizes(model.config)
    named = "attn_pdrop" if hasattr(model.config, "attn_pdrop") else "attention_dropout"
    assert found.pop("attention_dropout") == getattr(model.config, named)
    assert found == expected
    assert len(getattr(model.body, plan.blocks)) == found["layers"]
    assert model.embedding.weight.shape[0] == found["vocab_size"]
    assert model.cache_shape[:2] == (found["layers"], found["kv_heads"])
    for block in getattr(model.body, plan.blocks):
        if plan.experts:
            experts = cell(block, plan.experts).experts
            assert len(experts) == found["experts"] and experts[0].w1.weight.shape[0] == found["inner"]
    ParallelConfig(data=1).check(**found)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (GPT2LMHeadModel, (12, 12, 12, 3072, 50257, 0, 0.1)),
        (OpenAIGPTLMHeadModel, (12, 12, 12, 3072, 40478, 0, 0.1)),
        (BloomForCausalLM, (8, 8, 2, 256, 250880, 0, 0.0)),
        (LlamaForCausalLM, (32, 32, 32, 11008, 32000, 0, 0.0)),
        (MixtralForCausalLM, (32, 8, 32, 14336, 32000, 8, 0.0)),
    ],
)
def test_sizes_of_a_configuration_that_says_nothing(cls, expected):
    names = ("heads", "kv_heads", "layers", "inner", "vocab_size", "experts", "attention_dropout")
    assert sizes(cls.config_class.from_dict({})) == dict(zip(names, expected, strict=True))
