"""LLaMA 1, 2 and 3 (Touvron et al. 2023a, 2023b; Llama team 2024). Shapes: B batch, T tokens, D width, H heads,
K key-value heads, C head width, V vocabulary."""

import dataclasses

from mindspore import nn

from msllm import kernels
from msllm.layers import BlockParts, Embedding, Linear, RMSNorm, Rotary, attend, positions, run_blocks
from msllm.models.causal_lm import CausalLM
from msllm.models.config import ModelConfig

DEFAULT_ARCHITECTURE = "LlamaForCausalLM"


@dataclasses.dataclass(kw_only=True)
class LlamaConfig(ModelConfig):
    """Hugging Face's config.json of a LLaMA."""

    model_type: str = "llama"
    architectures: list[str] = dataclasses.field(default_factory=lambda: ["LlamaForCausalLM"])
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads:
            self.head_dim = self.hidden_size // self.num_attention_heads

    def check(self) -> None:
        super().check()
        self._positive(
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "head_dim",
        )
        if self.head_dim == self.hidden_size // self.num_attention_heads:
            self._divides("num_attention_heads", "hidden_size")
        self._divides("num_key_value_heads", "num_attention_heads")
        self._one_of("hidden_act", "silu")


class LlamaAttention(nn.Cell):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.heads, self.kv_heads, self.head_width, self.layer = H, K, C, layer
        self.scale, self.dropout = C**-0.5, config.attention_dropout
        bias, std = config.attention_bias, config.initializer_range
        self.q_proj = Linear(D, H * C, bias, std)
        self.k_proj = Linear(D, K * C, bias, std)
        self.v_proj = Linear(D, K * C, bias, std)
        self.o_proj = Linear(H * C, D, bias, std)

    def construct(self, x_BTD, cos, sin, key_mask, row_start, cache):
        q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        B, T, _ = q.shape
        q_BTHC = q.reshape(B, T, self.heads, self.head_width)
        k_BTKC = k.reshape(B, T, self.kv_heads, self.head_width)
        v_BTKC = v.reshape(B, T, self.kv_heads, self.head_width)
        q_BTHC, k_BTKC = kernels.rotary(q_BTHC, cos, sin), kernels.rotary(k_BTKC, cos, sin)
        out = attend(
            q_BTHC,
            k_BTKC,
            v_BTKC,
            self.scale,
            True,
            key_mask,
            row_start,
            None,
            self.dropout if self.training else 0.0,
            cache,
            self.layer,
        )
        return self.o_proj(out)


class LlamaMLP(nn.Cell):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, equation 6)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        D, F, bias, std = config.hidden_size, config.intermediate_size, config.mlp_bias, config.initializer_range
        self.gate_proj = Linear(D, F, bias, std)
        self.up_proj = Linear(D, F, bias, std)
        self.down_proj = Linear(F, D, bias, std)

    def construct(self, x_BTD):
        return self.down_proj(kernels.swiglu(self.gate_proj(x_BTD), self.up_proj(x_BTD)))


class LlamaBlock(nn.Cell):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)).

    A sum is taken together with the norm that follows it, so the block gets and gives its last sum as two terms.
    """

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.self_attn = LlamaAttention(config, layer)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def construct(self, x_BTD, update_BTD, cos, sin, key_mask, row_start, cache):
        x_BTD, normed_BTD = self.input_layernorm.add(x_BTD, update_BTD)
        attention_BTD = self.self_attn(normed_BTD, cos, sin, key_mask, row_start, cache)
        x_BTD, normed_BTD = self.post_attention_layernorm.add(x_BTD, attention_BTD)
        return x_BTD, self.mlp(normed_BTD)

    def parts(self) -> BlockParts:
        """What the block consists of, for layers.run_blocks."""
        attention, mlp = self.self_attn, self.mlp
        return BlockParts(
            self.input_layernorm,
            self.post_attention_layernorm,
            (attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj,
            mlp.up_proj,
            mlp.down_proj,
            attention.heads,
            attention.kv_heads,
            attention.head_width,
            attention.scale,
            gate=mlp.gate_proj,
        )


class LlamaModel(nn.Cell):
    """Token ids to hidden states (B, T, D), through blocks of ``block_class``."""

    block_class: type[nn.Cell] = LlamaBlock

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, config.initializer_range)
        self.layers = nn.CellList([self.block_class(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings)

    def embed(self, input_ids, position_ids):
        """What the first block gets."""
        return self.embed_tokens(input_ids)

    def between(self, position_ids, total_length: int) -> dict:
        """What every block gets beside the residual stream."""
        return {"rotary": self.rotary(position_ids, total_length)}

    def finish(self, x_BTD, update_BTD):
        """What the head gets."""
        return self.norm.add(x_BTD, update_BTD)[1]

    def construct(self, input_ids, attention_mask=None, position_ids=None, row_start=None, cache=None):
        T = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        if position_ids is None:
            position_ids = positions(T, start)
        x_BTD, rest = self.embed(input_ids, position_ids), self.between(position_ids, start + T)
        return self.finish(*run_blocks(self.layers, x_BTD, attention_mask, row_start, cache, **rest))


class LlamaForCausalLM(CausalLM):
    """LLaMA with a head that predicts the next token."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    embedding_name = "embed_tokens"

    def __init__(self, config: LlamaConfig):
        super().__init__(config, LlamaModel(config))

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        c = self.config
        return c.num_hidden_layers, c.num_key_value_heads, c.head_dim
