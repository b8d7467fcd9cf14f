"""BLOOM (BigScience 2022). Shapes: B batch, T tokens, D width, H heads, C head width, V vocabulary."""

import dataclasses
from typing import ClassVar

from mindspore import nn

from msllm.layers import BlockParts, Dropout, Embedding, LayerNorm, Linear, alibi_slopes, attend_packed, run_blocks
from msllm.models.causal_lm import CausalLM
from msllm.models.config import ModelConfig

DEFAULT_ARCHITECTURE = "BloomForCausalLM"


@dataclasses.dataclass(kw_only=True)
class BloomConfig(ModelConfig):
    """Hugging Face's config.json of a BLOOM."""

    aliases: ClassVar[dict[str, str]] = {
        "n_embed": "hidden_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    }

    model_type: str = "bloom"
    architectures: list[str] = dataclasses.field(default_factory=lambda: ["BloomForCausalLM"])
    vocab_size: int = 250880
    hidden_size: int = 64
    n_layer: int = 2
    n_head: int = 8
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    apply_residual_connection_post_layernorm: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0

    def check(self) -> None:
        super().check()
        self._positive("hidden_size", "n_layer", "n_head")
        self._divides("n_head", "hidden_size")


class BloomAttention(nn.Cell):
    """Causal attention with ALiBi; the fused projection interleaves q, k and v per head, (H, 3, C)."""

    def __init__(self, config: BloomConfig, layer: int):
        super().__init__()
        D, H, std = config.hidden_size, config.n_head, config.initializer_range
        self.heads, self.layer, self.dropout = H, layer, config.attention_dropout
        self.scale = (D // H) ** -0.5
        self.query_key_value = Linear(D, 3 * D, std=std)
        self.dense = Linear(D, D, std=std)

    def construct(self, x_BTD, slopes, key_mask, row_start, cache):
        out = attend_packed(
            self.query_key_value(x_BTD),
            self.heads,
            True,
            self.scale,
            True,
            key_mask,
            row_start,
            slopes,
            self.dropout if self.training else 0.0,
            cache,
            self.layer,
        )
        return self.dense(out)


class BloomMLP(nn.Cell):
    """Two linear maps with a GELU (tanh form) between."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        D, std = config.hidden_size, config.initializer_range
        self.dense_h_to_4h = Linear(D, 4 * D, std=std)
        self.dense_4h_to_h = Linear(4 * D, D, std=std)

    def construct(self, x_BTD):
        return self.dense_4h_to_h(self.dense_h_to_4h.gelu(x_BTD, "tanh"))


class BloomBlock(nn.Cell):
    """Pre-norm; the residual starts before the norm, or after it where the config says so.

    A sum is taken together with the norm that follows it, so the block gets and gives its last sum as two terms.
    """

    def __init__(self, config: BloomConfig, layer: int):
        super().__init__()
        self.residual_after_norm = config.apply_residual_connection_post_layernorm
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.self_attention = BloomAttention(config, layer)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = BloomMLP(config)
        self.dropout = Dropout(config.hidden_dropout)

    def construct(self, x_BTD, update_BTD, slopes, key_mask, row_start, cache):
        x_BTD, normed_BTD = self.input_layernorm.add(x_BTD, update_BTD)
        residual_BTD = normed_BTD if self.residual_after_norm else x_BTD
        attention_BTD = self.dropout(self.self_attention(normed_BTD, slopes, key_mask, row_start, cache))
        x_BTD, normed_BTD = self.post_attention_layernorm.add(residual_BTD, attention_BTD)
        residual_BTD = normed_BTD if self.residual_after_norm else x_BTD
        return residual_BTD, self.dropout(self.mlp(normed_BTD))

    def parts(self) -> BlockParts | None:
        """What the block consists of, for layers.run_blocks; None where the residual starts after the norm."""
        if self.residual_after_norm:
            return None
        attention, mlp = self.self_attention, self.mlp
        H, C = attention.heads, self.input_layernorm.weight.shape[0] // attention.heads
        return BlockParts(
            self.input_layernorm,
            self.post_attention_layernorm,
            (attention.query_key_value,),
            attention.dense,
            mlp.dense_h_to_4h,
            mlp.dense_4h_to_h,
            H,
            H,
            C,
            attention.scale,
            gelu_kind="tanh",
            interleaved=True,
        )


class BloomModel(nn.Cell):
    """Token ids to hidden states (B, T, D). ALiBi needs distances only, so position_ids are not read."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, config.initializer_range)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.h = nn.CellList([BloomBlock(config, i) for i in range(config.n_layer)])
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.slopes = alibi_slopes(config.n_head)

    def embed(self, input_ids, position_ids):
        """What the first block gets."""
        return self.word_embeddings_layernorm(self.word_embeddings(input_ids))

    def between(self, position_ids, total_length: int) -> dict:
        """What every block gets beside the residual stream."""
        return {"slopes": self.slopes}

    def finish(self, x_BTD, update_BTD):
        """What the head gets."""
        return self.ln_f.add(x_BTD, update_BTD)[1]

    def construct(self, input_ids, attention_mask=None, position_ids=None, row_start=None, cache=None):
        x_BTD = self.embed(input_ids, position_ids)
        return self.finish(*run_blocks(self.h, x_BTD, attention_mask, row_start, cache, slopes=self.slopes))


class BloomForCausalLM(CausalLM):
    """BLOOM with a head that predicts the next token."""

    config_class = BloomConfig
    base_model_prefix = "transformer"
    embedding_name = "word_embeddings"

    def __init__(self, config: BloomConfig):
        super().__init__(config, BloomModel(config))

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        c = self.config
        return c.n_layer, c.n_head, c.hidden_size // c.n_head
