"""The Transformer (Vaswani et al. 2017): an encoder and a decoder that attends to it.

Shapes: B batch, S source tokens, T target tokens, D width, H heads, C head width, V vocabulary. One vocabulary serves
both languages. Weights are saved under the names of torch.nn.Transformer, beside those of the embeddings.
"""

import dataclasses

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from msllm import kernels
from msllm.layers import Dropout, Embedding, KVCache, LayerNorm, Linear, attend, attend_packed, sinusoidal
from msllm.models.config import ModelConfig
from msllm.models.pretrained import PretrainedModel

DEFAULT_ARCHITECTURE = "TransformerForTranslation"


@dataclasses.dataclass(kw_only=True)
class TransformerConfig(ModelConfig):
    """Sizes of the model; the defaults are the paper's base model (table 3).

    Args:
        d_model, encoder_layers, decoder_layers, attention_heads, ffn_dim: width, depth, heads, inner width.
        dropout: of embeddings and sub-layers' outputs (section 5.4).
        attention_dropout, activation_dropout: of attention weights and inner activations; the paper has none,
            torch.nn.Transformer drops these too.
        activation: of the feed-forward layers, relu or gelu.
        pre_norm: norm before each sub-layer (Xiong et al. 2020) instead of after it.
        final_norm: a norm after the last layer of each stack; torch.nn.Transformer has it always, the paper never,
            and pre-norm needs it. None: as pre_norm.
        max_positions: the longest source or target, in tokens.
        tie_word_embeddings: one matrix is source embedding, target embedding and output (section 3.4).
        decoder_start_token_id: what stands before the first target token.
    """

    model_type: str = "transformer"
    architectures: list[str] = dataclasses.field(default_factory=lambda: [DEFAULT_ARCHITECTURE])
    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    attention_heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: str = "relu"
    pre_norm: bool = False
    final_norm: bool | None = None
    layer_norm_eps: float = 1e-5
    max_positions: int = 512
    decoder_start_token_id: int | None = None

    def check(self) -> None:
        super().check()
        self._positive("d_model", "encoder_layers", "decoder_layers", "attention_heads", "ffn_dim", "max_positions")
        self._divides("attention_heads", "d_model")
        self._one_of("activation", "relu", "gelu")
        self._shares("dropout", "attention_dropout", "activation_dropout")
        if self.final_norm is None:
            self.final_norm = self.pre_norm


def glorot(out_features: int, in_features: int) -> float:
    """Standard deviation of Glorot and Bengio's initial weights (2010, equation 16)."""
    return (2.0 / (in_features + out_features)) ** 0.5


class SelfAttention(nn.Cell):
    """Multi-head attention of a sequence to itself (section 3.2.2)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        D = config.d_model
        self.heads, self.scale, self.dropout = (
            config.attention_heads,
            (D // config.attention_heads) ** -0.5,
            config.attention_dropout,
        )
        self.in_proj = Linear(D, 3 * D, std=glorot(3 * D, D))
        self.out_proj = Linear(D, D, std=glorot(D, D))

    def construct(self, x_BTD, causal, mask=None, cache=None, layer=0):
        """mask: int32 (B, T), 1 = a real token, cached ones included."""
        p = self.dropout if self.training else 0.0
        packed = self.in_proj(x_BTD)
        out = attend_packed(packed, self.heads, False, self.scale, causal, mask, dropout=p, cache=cache, layer=layer)
        return self.out_proj(out)


class CrossAttention(nn.Cell):
    """Queries from the target, keys and values from the encoder's output (section 3.2.3)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        D, H = config.d_model, config.attention_heads
        self.heads, self.head_width, self.scale, self.dropout = H, D // H, (D // H) ** -0.5, config.attention_dropout
        self.q_proj = Linear(D, D, std=glorot(3 * D, D))
        self.kv_proj = Linear(D, 2 * D, std=glorot(3 * D, D))
        self.out_proj = Linear(D, D, std=glorot(D, D))

    def memory(self, x_BSD):
        """Encoder output -> keys and values, each (B, S, H, C)."""
        B, S, _ = x_BSD.shape
        kv = self.kv_proj(x_BSD).reshape(B, S, 2 * self.heads, self.head_width)
        return ops.split(kv, self.heads, axis=2)

    def construct(self, x_BTD, memory, memory_mask):
        """memory: as the method returns it; memory_mask: int32 (B, S)."""
        B, T, _ = x_BTD.shape
        q_BTHC = self.q_proj(x_BTD).reshape(B, T, self.heads, self.head_width)
        p = self.dropout if self.training else 0.0
        return self.out_proj(attend(q_BTHC, *memory, self.scale, False, memory_mask, dropout=p))


class FeedForward(nn.Cell):
    """Two linear maps with an activation between (section 3.3, equation 2)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        D, F = config.d_model, config.ffn_dim
        self.linear1 = Linear(D, F, std=glorot(F, D))
        self.linear2 = Linear(F, D, std=glorot(F, D))
        self.dropout = Dropout(config.activation_dropout)
        self.is_gelu = config.activation == "gelu"

    def construct(self, x_BTD):
        h = self.linear1.gelu(x_BTD, "none") if self.is_gelu else ops.relu(self.linear1(x_BTD))
        return self.linear2(self.dropout(h))


class Layer(nn.Cell):
    """What encoder and decoder layers share: residual sub-layers with the norm before or after (section 3.1)."""

    def __init__(self, config: TransformerConfig, norms: int):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = SelfAttention(config)
        self.feed_forward = FeedForward(config)
        self.norms = nn.CellList([LayerNorm(config.d_model, config.layer_norm_eps) for _ in range(norms)])
        self.dropout = Dropout(config.dropout)

    def residual(self, i, x, sublayer):
        """x -> x + sublayer(norm(x)), or norm(x + sublayer(x))."""
        norm = self.norms[i]
        if self.pre_norm:
            return x + self.dropout(sublayer(norm(x)))
        return norm.add(x, self.dropout(sublayer(x)))[1]


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config, norms=2)

    def construct(self, x_BSD, mask):
        def attention(x):
            return self.self_attn(x, False, mask)

        return self.residual(1, self.residual(0, x_BSD, attention), self.feed_forward)


class DecoderLayer(Layer):
    """Causal self-attention, attention to the encoder, and feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config, norms=3)
        self.multihead_attn = CrossAttention(config)

    def construct(self, x_BTD, memory, memory_mask, mask=None, cache=None, layer=0):
        def to_itself(x):
            return self.self_attn(x, True, mask, cache, layer)

        def to_source(x):
            return self.multihead_attn(x, memory, memory_mask)

        x_BTD = self.residual(1, self.residual(0, x_BTD, to_itself), to_source)
        return self.residual(2, x_BTD, self.feed_forward)


class Stack(nn.Cell):
    """The layers of encoder or decoder, and the norm after them."""

    def __init__(self, config: TransformerConfig, layer: type[Layer], count: int):
        super().__init__()
        self.layers = nn.CellList([layer(config) for _ in range(count)])
        self.norm = LayerNorm(config.d_model, config.layer_norm_eps) if config.final_norm else None


class TransformerForTranslation(PretrainedModel):
    """Source ids to the logits of target ids."""

    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        D, V = config.d_model, config.vocab_size
        # Embeddings are multiplied by sqrt(D), and come out with variance 1 (section 3.4).
        self.source_embedding = Embedding(V, D, D**-0.5)
        self.tied = config.tie_word_embeddings
        if not self.tied:
            self.target_embedding = Embedding(V, D, D**-0.5)
            self.generator = Linear(D, V, False, glorot(V, D))
        self.encoder = Stack(config, EncoderLayer, config.encoder_layers)
        self.decoder = Stack(config, DecoderLayer, config.decoder_layers)
        self.dropout = Dropout(config.dropout)
        self.scale = D**0.5
        self.positions = Tensor(sinusoidal(config.max_positions, D))

    def construct(self, input_ids, attention_mask, decoder_input_ids):
        """Returns logits (B, T, V).

        Args:
            input_ids: source, int32 (B, S).
            attention_mask: int32 (B, S), 1 = a real token; None where all are.
            decoder_input_ids: target, moved one to the right, int32 (B, T); padding at the end needs no mask.
        """
        memory_BSD = self.encode(input_ids, attention_mask)
        x_BTD = self._embed(decoder_input_ids, 0, target=True)
        for layer in self.decoder.layers:
            x_BTD = layer(x_BTD, layer.multihead_attn.memory(memory_BSD), attention_mask)
        return self.head(x_BTD)

    def encode(self, input_ids, attention_mask):
        """Source ids (B, S) to the encoder's output (B, S, D)."""
        x_BSD = self._embed(input_ids, 0, target=False)
        for layer in self.encoder.layers:
            x_BSD = layer(x_BSD, attention_mask)
        return x_BSD if self.encoder.norm is None else self.encoder.norm(x_BSD)

    def head(self, x_BTD):
        """Output of the decoder's layers (B, T, D) to logits (B, T, V)."""
        if self.decoder.norm is not None:
            x_BTD = self.decoder.norm(x_BTD)
        return kernels.linear(x_BTD, self.source_embedding.weight) if self.tied else self.generator(x_BTD)

    def _embed(self, ids, start, target):
        end = start + ids.shape[1]
        if end > self.config.max_positions:
            raise ValueError(f"{end} tokens do not fit into {self.config.max_positions} positions")
        table = self.source_embedding if self.tied or not target else self.target_embedding
        return self.dropout(table(ids) * self.scale + self.positions[start:end])

    @property
    def max_length(self) -> int:
        """The longest target, in tokens."""
        return self.config.max_positions

    def make_cache(self, input_ids, attention_mask, length: int) -> "TranslationCache":
        """Runs the encoder; returns what decoding needs of it, and room for ``length`` target tokens."""
        memory_BSD = self.encode(input_ids, attention_mask)
        memories = [layer.multihead_attn.memory(memory_BSD) for layer in self.decoder.layers]
        H = self.config.attention_heads
        own = KVCache(self.config.decoder_layers, input_ids.shape[0], length, H, self.config.d_model // H)
        return TranslationCache(own, [[part.contiguous() for part in m] for m in memories], attention_mask)

    def next_logits(self, decoder_input_ids, cache: "TranslationCache"):
        """Runs new target tokens (B, T) over ``cache`` and advances it; returns the last token's logits (B, V)."""
        x_BTD = self._embed(decoder_input_ids, cache.own.length, target=True)
        for i, layer in enumerate(self.decoder.layers):
            x_BTD = layer(x_BTD, cache.memories[i], cache.mask, None, cache.own, i)
        cache.own.length += decoder_input_ids.shape[1]
        return self.head(x_BTD[:, -1:]).reshape(decoder_input_ids.shape[0], -1)

    def sanitize(self, tensors):
        """torch.nn.Transformer's names to this model's."""
        D = self.config.d_model
        mine = {}
        for name, tensor in tensors.items():
            name = name.replace("in_proj_", "in_proj.")
            for i in (1, 2, 3):
                name = name.replace(f".norm{i}.", f".norms.{i - 1}.")
            name = name.replace(".linear", ".feed_forward.linear")
            if ".multihead_attn.in_proj." in name:
                mine[name.replace("in_proj", "q_proj")] = tensor[:D]
                mine[name.replace("in_proj", "kv_proj")] = tensor[D:]
            else:
                mine[name] = tensor
        return mine

    def unsanitize(self, tensors):
        """The inverse of sanitize."""
        theirs = {}
        for name, tensor in tensors.items():
            for i in (1, 2, 3):
                name = name.replace(f".norms.{i - 1}.", f".norm{i}.")
            name = name.replace(".feed_forward.linear", ".linear").replace(".in_proj.", ".in_proj_")
            if ".q_proj." in name:
                rest = tensors[name.replace("q_proj", "kv_proj")]
                theirs[name.replace(".q_proj.", ".in_proj_")] = np.concatenate([tensor, rest])
            elif ".kv_proj." not in name:
                theirs[name] = tensor
        return theirs


@dataclasses.dataclass
class TranslationCache:
    """What decoding keeps: the target's own keys and values, those of the source for each layer, the source's mask.

    Rows of one source sentence may change places (beam search): they share the source.
    """

    own: KVCache
    memories: list
    mask: ms.Tensor | None

    def reorder(self, rows: np.ndarray) -> None:
        """Row b becomes the old row rows[b] of the same source sentence."""
        self.own.reorder(rows)
