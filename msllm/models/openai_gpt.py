"""GPT (Radford et al. 2018). Shapes: B batch, T tokens, D width, H heads, C head width, V vocabulary, L labels."""

import dataclasses
from typing import ClassVar

from mindspore import nn

from msllm.layers import Dropout, Embedding, LayerNorm, Linear, attend_packed, positions, run_blocks, sum_embeddings
from msllm.models.causal_lm import CausalLM, GPTFamily, SequenceClassifier
from msllm.models.config import LabelledConfig

DEFAULT_ARCHITECTURE = "OpenAIGPTLMHeadModel"
# Under the name "gelu" the published model has the tanh approximation (its activation, in transformers gelu_new).
_GELU_KINDS = {"gelu": "tanh"}


@dataclasses.dataclass(kw_only=True)
class OpenAIGPTConfig(LabelledConfig):
    """Hugging Face's config.json of a GPT."""

    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }

    model_type: str = "openai-gpt"
    architectures: list[str] = dataclasses.field(default_factory=lambda: ["OpenAIGPTLMHeadModel"])
    vocab_size: int = 40478
    n_positions: int = 512
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    afn: str = "gelu"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    summary_first_dropout: float = 0.1

    def check(self) -> None:
        super().check()
        self._positive("n_positions", "n_embd", "n_layer", "n_head")
        self._divides("n_head", "n_embd")
        self._one_of("afn", *_GELU_KINDS)
        self._shares("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")


class OpenAIGPTAttention(nn.Cell):
    """Causal multi-head attention with one projection for queries, keys and values."""

    def __init__(self, config: OpenAIGPTConfig, layer: int):
        super().__init__()
        D, H = config.n_embd, config.n_head
        self.heads, self.layer, self.dropout = H, layer, config.attn_pdrop
        self.scale = (D // H) ** -0.5
        self.c_attn = Linear(D, 3 * D, std=config.initializer_range)
        self.c_proj = Linear(D, D, std=config.initializer_range)

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


class OpenAIGPTMLP(nn.Cell):
    """Two linear maps with a GELU between."""

    def __init__(self, config: OpenAIGPTConfig):
        super().__init__()
        D = config.n_embd
        self.gelu_kind = _GELU_KINDS[config.afn]
        self.c_fc = Linear(D, 4 * D, std=config.initializer_range)
        self.c_proj = Linear(4 * D, D, std=config.initializer_range)

    def construct(self, x_BTD):
        return self.c_proj(self.c_fc.gelu(x_BTD, self.gelu_kind))


class OpenAIGPTBlock(nn.Cell):
    """Post-norm: norm(x + attention(x)), then norm(x + mlp(x)) (section 4.1; Vaswani et al. 2017)."""

    def __init__(self, config: OpenAIGPTConfig, layer: int):
        super().__init__()
        self.attn = OpenAIGPTAttention(config, layer)
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = OpenAIGPTMLP(config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.dropout = Dropout(config.resid_pdrop)

    def construct(self, x_BTD, update_BTD, key_mask, row_start, cache):
        """x alone goes in and out: after a norm nothing is left to add, ``update_BTD`` is None."""
        attention_BTD = self.dropout(self.attn(x_BTD, key_mask, row_start, cache))
        x_BTD = self.ln_1.add(x_BTD, attention_BTD)[1]
        return self.ln_2.add(x_BTD, self.dropout(self.mlp(x_BTD)))[1], update_BTD

    def parts(self) -> None:
        """The kernel for whole blocks is for pre-norm ones."""
        return None


class OpenAIGPTModel(nn.Cell):
    """Token ids to hidden states (B, T, D); the last block's norm is the last layer."""

    def __init__(self, config: OpenAIGPTConfig):
        super().__init__()
        self.n_positions = config.n_positions
        self.tokens_embed = Embedding(config.vocab_size, config.n_embd, config.initializer_range)
        self.positions_embed = Embedding(config.n_positions, config.n_embd, config.initializer_range)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.CellList([OpenAIGPTBlock(config, i) for i in range(config.n_layer)])

    def embed(self, input_ids, position_ids):
        """What the first block gets."""
        return self.drop(sum_embeddings((input_ids, position_ids), (self.tokens_embed, self.positions_embed)))

    def finish(self, x_BTD, update_BTD):
        """What the head gets."""
        return x_BTD

    def construct(self, input_ids, attention_mask=None, position_ids=None, row_start=None, cache=None):
        T = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        if position_ids is None:
            if start + T > self.n_positions:
                raise ValueError(f"{start + T} tokens do not fit into {self.n_positions} positions")
            position_ids = positions(T, start)
        x_BTD = self.embed(input_ids, position_ids)
        return self.finish(*run_blocks(self.h, x_BTD, attention_mask, row_start, cache))


class OpenAIGPTLMHeadModel(GPTFamily, CausalLM):
    """GPT with a head that predicts the next token."""

    config_class = OpenAIGPTConfig
    embedding_name = "tokens_embed"

    def __init__(self, config: OpenAIGPTConfig):
        super().__init__(config, OpenAIGPTModel(config))


class OpenAIGPTForSequenceClassification(GPTFamily, SequenceClassifier):
    """GPT with a linear map of the last token onto classes (section 3.2)."""

    config_class = OpenAIGPTConfig
    embedding_name = "tokens_embed"

    def __init__(self, config: OpenAIGPTConfig):
        super().__init__(config, OpenAIGPTModel(config))
