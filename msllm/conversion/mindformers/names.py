"""What MindFormers calls the tensors of a Hugging Face file, and how it lays them out: LLaMA as in 1.9.0, GPT-2 and
BLOOM as in r0.8, which was the last to have them.

Layouts: a LLaMA's matrices stay as they are. r0.8 keeps queries, keys and values of GPT-2 and BLOOM as three matrices
(out, in), and the other matrices of a block as (in, out), as Hugging Face's GPT-2 does and its BLOOM does not. With
``qkv_concat``, 1.9.0 keeps the rows of each key-value group, its queries, keys and values, one after the other in one
matrix, and the rows of gate and up projection by turns in another.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from msllm.errors import UserError
from msllm.models.config import ModelConfig

# What the callbacks and optimisers of MindFormers save beside a model: moments, gradients, counters, monitors.
_STATES = re.compile(
    r"(adam_|accu_grads|moment|exp_avg|fi_parameter|zeros_|_?device_local_|expert_load|max_logits_val|beta[12]_power$"
    r"|scale_|loss_scale|global_step$|step_num$|epoch_num$|learning_rate|weight_decay$|global_batch_size$"
    r"|current_iterator_step$|last_overflow_iterator_step$|__\w+__$)"
)


def is_state(name: str) -> bool:
    """Whether a tensor of this name belongs to the training and not to the model."""
    return bool(_STATES.match(name)) or name.endswith(("_cache", "_device_local_norm", "_device_local_loss"))


@dataclasses.dataclass(frozen=True)
class _Fused:
    """A matrix that one side keeps whole and the other in parts; its bias alike.

    Attributes:
        whole, parts: ends of names, without ".weight" and ".bias".
        cut: from the whole, and the configuration, to the parts.
        join: the inverse.
    """

    whole: str
    parts: tuple[str, ...]
    cut: Callable[[np.ndarray, ModelConfig], list[np.ndarray]]
    join: Callable[[list[np.ndarray], ModelConfig], np.ndarray]

    def cut_all(self, tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for name, tensor in tensors.items():
            stem, end = _stem(name)
            if stem.endswith(f".{self.whole}"):
                head = stem.removesuffix(self.whole)
                parts = self.cut(tensor, config)
                out.update({f"{head}{part}{end}": value for part, value in zip(self.parts, parts, strict=True)})
            else:
                out[name] = tensor
        return out

    def join_all(self, tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for name, tensor in tensors.items():
            stem, end = _stem(name)
            part = next((part for part in self.parts if stem.endswith(f".{part}")), None)
            if part is None:
                out[name] = tensor
            elif part == self.parts[0]:
                names = [f"{stem.removesuffix(part)}{other}{end}" for other in self.parts]
                lacking = [other for other in names if other not in tensors]
                if lacking:
                    raise UserError(f"the checkpoint has {name} and lacks {lacking[0]}; copy it again")
                whole = f"{stem.removesuffix(part)}{self.whole}{end}"
                out[whole] = self.join([tensors[other] for other in names], config)
        return out


@dataclasses.dataclass(frozen=True)
class _Family:
    """The names of a family.

    Attributes:
        blocks: what stands before the number of a block, in Hugging Face's names and in MindFormers'.
        outside: whole names, Hugging Face's to MindFormers'.
        inside: what stands after the number of a block.
        split: what Hugging Face keeps whole and MindFormers in parts.
        concat: what MindFormers keeps whole with qkv_concat, by its own names.
        transposed: ends of MindFormers' names whose matrices Hugging Face's file has the other way round.
    """

    blocks: tuple[str, str]
    outside: Mapping[str, str]
    inside: Mapping[str, str]
    split: tuple[_Fused, ...] = ()
    concat: tuple[_Fused, ...] = ()
    transposed: tuple[str, ...] = ()

    def renamed(self, name: str, back: bool = False) -> str | None:
        """Returns the name on the other side; None for one that the family does not have."""
        here, there = reversed(self.blocks) if back else self.blocks
        outside, inside = (_inverse(t) if back else t for t in (self.outside, self.inside))
        if name in outside:
            return outside[name]
        block = re.fullmatch(rf"{re.escape(here)}(\d+)\.(.+)", name)
        if block and block[2] in inside:
            return f"{there}{block[1]}.{inside[block[2]]}"
        return None


def _stem(name: str) -> tuple[str, str]:
    """Returns a name without its end, and the end: ".weight", ".bias" or nothing."""
    end = next((end for end in (".weight", ".bias") if name.endswith(end)), "")
    return name.removesuffix(end), end


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}


def _linear(names: Mapping[str, str]) -> dict[str, str]:
    return _ends(names, {".weight": ".weight", ".bias": ".bias"})


def _norm(names: Mapping[str, str]) -> dict[str, str]:
    return _ends(names, {".weight": ".gamma", ".bias": ".beta"})


def _ends(names: Mapping[str, str], ends: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}{mine}": f"{theirs}{other}" for ours, theirs in names.items() for mine, other in ends.items()}


def _cut_columns(whole, config):
    """GPT-2's Conv1D (in, 3 out) to three (out, in)."""
    return [np.ascontiguousarray(part.T) for part in np.split(whole, 3, axis=-1)]


def _join_columns(parts, config):
    return np.concatenate([part.T for part in parts], axis=-1)


def _cut_heads(whole, config):
    """BLOOM's rows (H, 3, C) to three of (H, C)."""
    heads, rest = config.n_head, whole.shape[1:]
    by_head = whole.reshape(heads, 3, -1, *rest)
    return [np.ascontiguousarray(by_head[:, i]).reshape(-1, *rest) for i in range(3)]


def _join_heads(parts, config):
    _fits(parts[0], config.hidden_size, "queries")
    rest = parts[0].shape[1:]
    return np.stack([part.reshape(config.n_head, -1, *rest) for part in parts], axis=1).reshape(-1, *rest)


def _cut_groups(whole, config):
    """The rows of key-value groups, each its queries, keys and values, to queries, keys and values."""
    _fits(
        whole, (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim, "queries, keys, values"
    )
    groups, width, rest = config.num_key_value_heads, config.head_dim, whole.shape[1:]
    queries = config.num_attention_heads // groups * width
    parts = np.split(whole.reshape(groups, -1, *rest), [queries, queries + width], axis=1)
    return [np.ascontiguousarray(part).reshape(-1, *rest) for part in parts]


def _join_groups(parts, config):
    groups, rest = config.num_key_value_heads, parts[0].shape[1:]
    return np.concatenate([part.reshape(groups, -1, *rest) for part in parts], axis=1).reshape(-1, *rest)


def _cut_turns(whole, config):
    return [np.ascontiguousarray(whole[0::2]), np.ascontiguousarray(whole[1::2])]


def _join_turns(parts, config):
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def _fits(array, rows: int, what: str) -> None:
    if len(array) != rows:
        raise UserError(
            f"the checkpoint holds {len(array)} rows of {what} in a block, the configuration asks for {rows}; give the "
            f"configuration that belongs to it"
        )


_DENSE = ("attention.dense1", "attention.dense2", "attention.dense3")
_R08 = _linear({part: part for part in _DENSE})

FAMILIES = {
    "llama": _Family(
        blocks=("model.layers.", "model.layers."),
        outside={
            "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
            "model.norm.weight": "model.norm_out.weight",
            "lm_head.weight": "lm_head.weight",
        },
        inside=_linear(
            {
                "self_attn.q_proj": "attention.wq",
                "self_attn.k_proj": "attention.wk",
                "self_attn.v_proj": "attention.wv",
                "self_attn.o_proj": "attention.wo",
            }
        )
        | {
            "mlp.gate_proj.weight": "feed_forward.w1.weight",
            "mlp.down_proj.weight": "feed_forward.w2.weight",
            "mlp.up_proj.weight": "feed_forward.w3.weight",
            "input_layernorm.weight": "attention_norm.weight",
            "post_attention_layernorm.weight": "ffn_norm.weight",
        },
        concat=(
            _Fused("attention.w_qkv", ("attention.wq", "attention.wk", "attention.wv"), _cut_groups, _join_groups),
            _Fused("feed_forward.w_gate_hidden", ("feed_forward.w1", "feed_forward.w3"), _cut_turns, _join_turns),
        ),
    ),
    "gpt2": _Family(
        blocks=("transformer.h.", "backbone.blocks."),
        outside={
            "transformer.wte.weight": "backbone.embedding.word_embedding.embedding_table",
            "transformer.wpe.weight": "backbone.embedding.position_embedding.embedding_table",
        }
        | _norm({"transformer.ln_f": "backbone.layernorm"}),
        inside=_linear(
            {"attn.c_proj": "attention.projection", "mlp.c_fc": "output.mapping", "mlp.c_proj": "output.projection"}
        )
        | _norm({"ln_1": "layernorm1", "ln_2": "layernorm2"})
        | _R08,
        split=(_Fused("attn.c_attn", _DENSE, _cut_columns, _join_columns),),
    ),
    "bloom": _Family(
        blocks=("transformer.h.", "blocks."),
        outside={
            "transformer.word_embeddings.weight": "embedding.word_embedding.embedding_table",
            "lm_head.weight": "head.weight",
        }
        | _norm({"transformer.word_embeddings_layernorm": "embedding.norm", "transformer.ln_f": "ln_f"}),
        inside=_linear(
            {
                "self_attention.dense": "attention.projection",
                "mlp.dense_h_to_4h": "output.mapping",
                "mlp.dense_4h_to_h": "output.projection",
            }
        )
        | _norm({"input_layernorm": "layernorm1", "post_attention_layernorm": "layernorm2"})
        | _R08,
        split=(_Fused("self_attention.query_key_value", _DENSE, _cut_heads, _join_heads),),
        transposed=("attention.projection.weight", "output.mapping.weight", "output.projection.weight"),
    ),
}


def to_names(tensors: Mapping[str, np.ndarray], config: ModelConfig, qkv_concat: bool = False) -> dict[str, np.ndarray]:
    """Returns the tensors of a Hugging Face file under MindFormers' names and in its layouts.

    Args:
        tensors: name -> array as in the file of a LlamaForCausalLM, GPT2LMHeadModel or BloomForCausalLM.
        config: of the model.
        qkv_concat: fuse queries, keys and values, and gate and up projection, as 1.9.0 does under that option.

    Raises:
        UserError: a family or a tensor that MindFormers has no name for; qkv_concat with a family of r0.8.
    """
    family = _family(config)
    if qkv_concat and not family.concat:
        raise UserError(
            f"qkv_concat is on and the model a {config.model_type}, whose names are those of r0.8, which has no such "
            f"option; leave it out"
        )
    for fused in family.split:
        tensors = fused.cut_all(tensors, config)
    out = {}
    for name, tensor in tensors.items():
        new = family.renamed(name)
        if new is None:
            raise UserError(
                f"MindFormers has no name for {name} of a {config.model_type}; convert a causal language model without "
                f"other heads and without biases of its feed-forward layers"
            )
        out[new] = np.ascontiguousarray(tensor.T) if new.endswith(family.transposed) else tensor
    for fused in family.concat if qkv_concat else ():
        out = fused.join_all(out, config)
    return out


def from_names(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of to_names; whether tensors are fused is seen from their names.

    Names of a BLOOM may begin with "transformer.", as those of checkpoints made from a whole Hugging Face model do.

    Raises:
        UserError: a family that is not the configuration's; a tensor that the family does not have.
    """
    kind, family = family_of(tensors), _family(config)
    if kind != config.model_type:
        raise UserError(f"the checkpoint holds a {kind}, the configuration is of a {config.model_type}; give its own")
    for fused in family.concat:
        tensors = fused.cut_all(tensors, config)
    out = {}
    for name, tensor in tensors.items():
        new = family.renamed(name.removeprefix("transformer."), back=True)
        if new is None:
            raise UserError(
                f"the checkpoint holds {name}, which MindFormers' {kind} does not have; convert the checkpoint of the "
                f"plain model, without adapters"
            )
        out[new] = tensor.T if name.endswith(family.transposed) else tensor
    for fused in family.split:
        out = fused.join_all(out, config)
    return out


def family_of(names: Iterable[str]) -> str:
    """Returns the model type whose embedding is among MindFormers' names; UserError where there is none."""
    names = list(names)
    for kind, family in FAMILIES.items():
        embedding = next(iter(family.outside.values()))
        if any(name in (embedding, f"transformer.{embedding}") for name in names):
            return kind
    raise UserError(
        f"no name is that of an embedding of MindFormers' {', '.join(FAMILIES)}; found: "
        f"{', '.join(names[:6]) or 'none'}"
    )


def _family(config: ModelConfig) -> _Family:
    if config.model_type not in FAMILIES:
        raise UserError(
            f"MindFormers' names are known for {', '.join(FAMILIES)}, not for a {config.model_type}; use one of them"
        )
    return FAMILIES[config.model_type]
