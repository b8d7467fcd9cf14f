"""Which matrices of each family are cut by columns, and which by rows."""

import dataclasses

from msllm.errors import UserError
from msllm.parallel.config import ParallelConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the workers of a tensor group share one block, and the body around it.

    Cut by columns, each worker works out some of the outputs; cut by rows, it takes some of the inputs, and the results
    are summed (Shoeybi et al. 2019, section 3). Names are those of cells within a block.

    Attributes:
        columns: cell -> how many matrices lie in it one upon the other, such as 3 for queries, keys and values; each of
            them is cut.
        rows: cells.
        counts: (cell, attribute): numbers of heads, which each worker has its share of.
        experts: a cell of experts, cut inside, or "".
        per_head: attributes of the body with a value a head.
        positions: the table of learned positions in the body, or "".
        blocks: the list of blocks in the body.
        last: what the body has after them.
    """

    columns: dict[str, int]
    rows: tuple[str, ...]
    counts: tuple[tuple[str, str], ...]
    experts: str = ""
    per_head: tuple[str, ...] = ()
    positions: str = ""
    blocks: str = "h"
    last: tuple[str, ...] = ("ln_f",)


_GPT = {
    "columns": {"attn.c_attn": 3, "mlp.c_fc": 1},
    "rows": ("attn.c_proj", "mlp.c_proj"),
    "counts": (("attn", "heads"),),
}
_LLAMA_ATTENTION = {"self_attn.q_proj": 1, "self_attn.k_proj": 1, "self_attn.v_proj": 1}
_LLAMA_COUNTS = (("self_attn", "heads"), ("self_attn", "kv_heads"))
_LLAMA_BODY = {"blocks": "layers", "last": ("norm",)}

PLANS = {
    "gpt2": Plan(**_GPT, positions="wpe"),
    "openai-gpt": Plan(**_GPT, positions="positions_embed", last=()),
    # Each head's queries, keys and values lie together, so that one cut by heads is enough.
    "bloom": Plan(
        {"self_attention.query_key_value": 1, "mlp.dense_h_to_4h": 1},
        ("self_attention.dense", "mlp.dense_4h_to_h"),
        (("self_attention", "heads"),),
        per_head=("slopes",),
    ),
    "llama": Plan(
        {**_LLAMA_ATTENTION, "mlp.gate_proj": 1, "mlp.up_proj": 1},
        ("self_attn.o_proj", "mlp.down_proj"),
        _LLAMA_COUNTS,
        **_LLAMA_BODY,
    ),
    "mixtral": Plan(_LLAMA_ATTENTION, ("self_attn.o_proj",), _LLAMA_COUNTS, experts="block_sparse_moe", **_LLAMA_BODY),
}


def plan_for(model_type: str) -> Plan:
    """Returns the plan of a family; UserError where there is none."""
    if model_type not in PLANS:
        raise UserError(
            f"a {model_type} cannot be cut into parts; choose --parallel.data alone, or one of {', '.join(PLANS)}"
        )
    return PLANS[model_type]


def sizes(config) -> dict[str, float]:
    """Returns what ParallelConfig.check wants to know of a model, from its configuration."""

    def first(*names, default=None) -> int:
        found = (getattr(config, name, None) for name in names)
        return next((value for value in found if value is not None), default)

    heads, width = first("num_attention_heads", "n_head"), first("hidden_size", "n_embd")
    return {
        "heads": heads,
        "kv_heads": first("num_key_value_heads", default=heads),
        "layers": first("num_hidden_layers", "n_layer"),
        "inner": first("intermediate_size", "n_inner", default=4 * width),
        "vocab_size": config.vocab_size,
        "attention_dropout": first("attention_dropout", "attn_pdrop", default=0.0),
        "experts": first("num_local_experts", default=0),
    }


def check_layout(parallel: ParallelConfig, training, model_type: str, known: dict, length: int | None) -> None:
    """Raises UserError where a model or its batches cannot be spread so.

    Args:
        parallel: its ``data`` is filled in.
        training: the TrainingArguments.
        model_type: the family.
        known: sizes of the model, see ``sizes``.
        length: see ParallelConfig.check.
    """
    plan_for(model_type)
    parallel.check_training(training.optim, training.jit)
    if parallel.mode == "auto" and training.train_batch_tokens:
        raise UserError(
            f"train_batch_tokens is {training.train_batch_tokens} and parallel.mode auto: a compiled step takes one "
            f"shape, and batches by tokens have many; leave train_batch_tokens out"
        )
    batch = None if training.train_batch_tokens else training.per_device_train_batch_size
    parallel.check(**known, length=length, batch=batch)


def check_splits(config, parallel: ParallelConfig) -> None:
    """Raises UserError where what a model does depends on places in the example, and workers share its tokens."""
    window, scaling = getattr(config, "sliding_window", None), getattr(config, "rope_scaling", None) or {}
    if window and (parallel.sequence > 1 or parallel.split_norms):
        raise UserError(
            f"the model attends to the last {window} tokens (sliding_window), which workers that share tokens cannot; "
            f"leave out parallel.sequence and split_norms"
        )
    if scaling.get("rope_type", scaling.get("type")) == "dynamic" and parallel.sequence > 1:
        raise UserError(
            "the model's rotary angles grow with the length (rope_scaling dynamic), which workers that share tokens do "
            "not know; leave out parallel.sequence"
        )
