"""GPT-2 (Radford et al. 2019). Shapes: B batch, T tokens, D width, H heads, C head width, V vocabulary."""

import dataclasses
from typing import ClassVar

from mindspore import nn

from msllm.layers import (
    BlockParts,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    attend_packed,
    positions,
    run_blocks,
    sum_embeddings,
)
from msllm.layers.basic import GELU_KINDS
from msllm.models.causal_lm import CausalLM, GPTFamily, SequenceClassifier
from msllm.models.config import LabelledConfig

DEFAULT_ARCHITECTURE = "GPT2LMHeadModel"


@dataclasses.dataclass(kw_only=True)
class GPT2Config(LabelledConfig):
    """Hugging Face's config.json of a GPT-2."""

    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }

    model_type: str = "gpt2"
    architectures: list[str] = dataclasses.field(default_factory=lambda: ["GPT2LMHeadModel"])
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    summary_first_dropout: float = 0.1

    def check(self) -> None:
        super().check()
        self._positive("n_positions", "n_embd", "n_layer", "n_head")
        self._divides("n_head", "n_embd")
        self._one_of("activation_function", *GELU_KINDS)
        self._shares("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")


class GPT2Attention(nn.Cell):
    """Causal multi-head attention with one projection for queries, keys and values."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        D, H = config.n_embd, config.n_head
        self.heads, self.layer, self.dropout = H, layer, config.attn_pdrop
        self.scale = (D // H) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Linear(D, 3 * D, std=config.initializer_range)
        self.c_proj = Linear(D, D, std=_residual_std(config))

    def construct(self, x_BTD, key_mask, row_start, cache):
        out = attend_packed(
            self.c_attn(x_BTD),
            self.heads,
            False,
            self.scale,
            True,
            key_mask,
            row_start,
            None,
            self.dropout if self.training else 0.0,
            cache,
            self.layer,
        )
        return self.c_proj(out)


class GPT2MLP(nn.Cell):
    """Two linear maps with a GELU between."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        D, F = config.n_embd, config.n_inner or 4 * config.n_embd
        self.gelu_kind = GELU_KINDS[config.activation_function]
        self.c_fc = Linear(D, F, std=config.initializer_range)
        self.c_proj = Linear(F, D, std=_residual_std(config))

    def construct(self, x_BTD):
        return self.c_proj(self.c_fc.gelu(x_BTD, self.gelu_kind))


class GPT2Block(nn.Cell):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)).

    A sum is taken together with the norm that follows it, so the block gets and gives its last sum as two terms.
    """

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)
        self.dropout = Dropout(config.resid_pdrop)

    def construct(self, x_BTD, update_BTD, key_mask, row_start, cache):
        x_BTD, normed_BTD = self.ln_1.add(x_BTD, update_BTD)
        attention_BTD = self.dropout(self.attn(normed_BTD, key_mask, row_start, cache))
        x_BTD, normed_BTD = self.ln_2.add(x_BTD, attention_BTD)
        return x_BTD, self.dropout(self.mlp(normed_BTD))

    def parts(self) -> BlockParts:
        """What the block consists of, for layers.run_blocks."""
        attention, mlp = self.attn, self.mlp
        H, C = attention.heads, self.ln_1.weight.shape[0] // attention.heads
        return BlockParts(
            self.ln_1,
            self.ln_2,
            (attention.c_attn,),
            attention.c_proj,
            mlp.c_fc,
            mlp.c_proj,
            H,
            H,
            C,
            attention.scale,
            gelu_kind=mlp.gelu_kind,
        )


class GPT2Model(nn.Cell):
    """Token ids to hidden states (B, T, D)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_positions = config.n_positions
        self.wte = Embedding(config.vocab_size, config.n_embd, config.initializer_range)
        self.wpe = Embedding(config.n_positions, config.n_embd, config.initializer_range)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.CellList([GPT2Block(config, i) for i in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def embed(self, input_ids, position_ids):
        """What the first block gets."""
        return self.drop(sum_embeddings((input_ids, position_ids), (self.wte, self.wpe)))

    def finish(self, x_BTD, update_BTD):
        """What the head gets."""
        return self.ln_f.add(x_BTD, update_BTD)[1]

    def construct(self, input_ids, attention_mask=None, position_ids=None, row_start=None, cache=None):
        T = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        if position_ids is None:
            if start + T > self.n_positions:
                raise ValueError(f"{start + T} tokens do not fit into {self.n_positions} positions")
            position_ids = positions(T, start)
        x_BTD = self.embed(input_ids, position_ids)
        return self.finish(*run_blocks(self.h, x_BTD, attention_mask, row_start, cache))


class GPT2LMHeadModel(GPTFamily, CausalLM):
    """GPT-2 with a head that predicts the next token."""

    config_class = GPT2Config
    embedding_name = "wte"

    def __init__(self, config: GPT2Config):
        super().__init__(config, GPT2Model(config))


class GPT2ForSequenceClassification(GPTFamily, SequenceClassifier):
    """GPT-2 with a linear map of the last token onto classes."""

    config_class = GPT2Config
    embedding_name = "wte"

    def __init__(self, config: GPT2Config):
        super().__init__(config, GPT2Model(config))


def _residual_std(config: GPT2Config) -> float:
    """Weights that write into the residual stream start smaller, by 1/sqrt(number of residual layers) (section 2.3)."""
    return config.initializer_range / (2 * config.n_layer) ** 0.5
