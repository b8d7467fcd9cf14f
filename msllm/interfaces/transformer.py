"""The Transformer cell of early MindFormers (mindformers.modules.Transformer), on the layers of models.transformer.

Shapes: B batch, S source tokens, T target tokens, D width, H heads, C head width.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import mindspore as ms
from mindspore import nn, ops
from mindspore.nn.layer import activation as mindspore_activations
from mindspore.ops.primitive import constexpr

from msllm import kernels
from msllm.errors import UserError, nearest
from msllm.layers import MoE, attend_masked
from msllm.models import transformer as blocks
from msllm.models.transformer import TransformerConfig
from msllm.parallel.config import ParallelConfig


@dataclasses.dataclass(kw_only=True)
class MoEConfig:
    """A mixture of experts in the place of each feed-forward layer; the names are MindFormers'.

    Args:
        expert_num: experts of a layer; 1 is no mixture.
        capacity_factor: see msllm.layers.MoE.
        aux_loss_factor: what the balancing losses of all layers are multiplied by.
        num_experts_chosen: experts of a token.
    """

    expert_num: int = 1
    capacity_factor: float = 1.1
    aux_loss_factor: float = 0.05
    num_experts_chosen: int = 1


class Transformer(nn.Cell):
    """Encoder and decoder over vectors: no embeddings, no head, no norm at the end.

    Each sub-layer is x + f(norm(x)), or norm(x) + f(norm(x)) with ``post_layernorm_residual``. The weights are those of
    torch.nn.Transformer(norm_first=True) without the norms that end its stacks.

    Args:
        hidden_size: D.
        batch_size: B, which inputs are compared with; None takes any.
        ffn_hidden_size: inner width of the feed-forward layers.
        src_seq_length, tgt_seq_length: S and T, which inputs are compared with.
        encoder_layers, decoder_layers: 0 decoder layers make an encoder.
        num_heads: H, a divisor of D.
        attention_dropout_rate: of attention weights.
        hidden_dropout_rate: of what attention and feed-forward layers give.
        hidden_act: a name of MindSpore's, of which "gelu" is the approximation by tanh, or a Cell or its class.
        post_layernorm_residual: what is added to a sub-layer's output, see above.
        layernorm_compute_type, softmax_compute_type, param_init_type: float32, the type of all kernels here.
        lambda_func: called for each layer as lambda_func(layer, layer_id=, layers=, offset=, parallel_config=), with
            ``layers`` those of both stacks and ``offset`` those before its own; it may set what MindSpore's graph mode
            reads, such as pipeline_stage.
        use_past: False: the cell keeps no keys and values between calls, and returns them.
        moe_config: a MoEConfig or a mapping of its values.
        parallel_config: None or the default: what spreads a model stands outside of it here.

    Raises:
        UserError: a value that has no meaning here.
    """

    def __init__(
        self,
        hidden_size: int,
        batch_size: int | None,
        ffn_hidden_size: int,
        src_seq_length: int,
        tgt_seq_length: int,
        encoder_layers: int = 3,
        decoder_layers: int = 3,
        num_heads: int = 2,
        attention_dropout_rate: float = 0.1,
        hidden_dropout_rate: float = 0.1,
        hidden_act: str | nn.Cell | type[nn.Cell] = "gelu",
        post_layernorm_residual: bool = False,
        layernorm_compute_type=ms.float32,
        softmax_compute_type=ms.float32,
        param_init_type=ms.float32,
        lambda_func: Callable | None = None,
        use_past: bool = False,
        moe_config: MoEConfig | Mapping | None = None,
        parallel_config: ParallelConfig | None = None,
    ):
        super().__init__()
        types = {"layernorm_compute_type": layernorm_compute_type, "softmax_compute_type": softmax_compute_type}
        _check_choices({**types, "param_init_type": param_init_type}, use_past, parallel_config)
        if encoder_layers < 1:
            raise UserError(f"encoder_layers is {encoder_layers}, expected 1 or more: a decoder attends to an encoder")
        self.moe_config = _moe_config(moe_config)
        self.hidden_size, self.batch_size, self.decoder_layers = hidden_size, batch_size, decoder_layers
        self.src_seq_length, self.tgt_seq_length = src_seq_length, tgt_seq_length
        with _own_names():
            config = TransformerConfig.from_dict(
                {
                    "vocab_size": 1,
                    "d_model": hidden_size,
                    "ffn_dim": ffn_hidden_size,
                    "encoder_layers": encoder_layers,
                    "decoder_layers": max(decoder_layers, 1),
                    "attention_heads": num_heads,
                    "attention_dropout": attention_dropout_rate,
                    "dropout": hidden_dropout_rate,
                    "max_positions": max(src_seq_length, tgt_seq_length),
                }
            )
        rest = (hidden_act, post_layernorm_residual, self.moe_config)
        self.encoder = nn.CellList([EncoderLayer(config, *rest) for _ in range(encoder_layers)])
        self.decoder = nn.CellList([DecoderLayer(config, *rest) for _ in range(decoder_layers)])
        if lambda_func is not None:
            more = {"layers": encoder_layers + decoder_layers, "parallel_config": parallel_config}
            for offset, stack in ((0, self.encoder), (encoder_layers, self.decoder)):
                for i, layer in enumerate(stack):
                    lambda_func(layer, layer_id=i, offset=offset, **more)

    def construct(self, encoder_inputs, encoder_masks, decoder_inputs=None, decoder_masks=None, memory_mask=None):
        """Runs both stacks, or the encoder where there is no decoder.

        Args:
            encoder_inputs: (B, S, D) or (B * S, D), float32.
            encoder_masks: (B, S, S), 1 where a query (row) may see a key; None where all see all.
            decoder_inputs: (B, T, D) or (B * T, D).
            decoder_masks: (B, T, T), or None: causality is the mask's business.
            memory_mask: (B, T, S), or None.

        Returns:
            (output, encoder_layer_present, decoder_layer_present): the last stack's output, of its input's shape; for
            each encoder layer its keys (B, H, C, S) and values (B, H, S, C); for each decoder layer those of the
            target, (B, H, C, T) and (B, H, T, C), and of the source; None without a decoder. With experts a fourth,
            the balancing loss, a scalar.

        Raises:
            UserError: a shape that is not the one this cell was made for.
        """
        x_BSD = self._batches("encoder_inputs", encoder_inputs, self.src_seq_length)
        B, S, T = x_BSD.shape[0], self.src_seq_length, self.tgt_seq_length
        if encoder_masks is not None:
            _check_shape("encoder_masks", encoder_masks.shape, (B, S, S))
        encoder_present = ()
        for layer in self.encoder:
            x_BSD, present = layer(x_BSD, encoder_masks)
            encoder_present += (present,)
        output, given, decoder_present = x_BSD, encoder_inputs, None
        if self.decoder_layers:
            output, given = self._batches("decoder_inputs", decoder_inputs, T), decoder_inputs
            _check_shape("decoder_inputs", output.shape, (B, T, self.hidden_size))
            if decoder_masks is not None:
                _check_shape("decoder_masks", decoder_masks.shape, (B, T, T))
            if memory_mask is not None:
                _check_shape("memory_mask", memory_mask.shape, (B, T, S))
            decoder_present = ()
            for layer in self.decoder:
                output, present = layer(output, x_BSD, decoder_masks, memory_mask)
                decoder_present += (present,)
        output = output.reshape(given.shape)
        if self.moe_config.expert_num == 1:
            return output, encoder_present, decoder_present
        balance = sum(layer.feed_forward.balance for layer in [*self.encoder, *self.decoder])
        return output, encoder_present, decoder_present, self.moe_config.aux_loss_factor * balance

    def _batches(self, name: str, x, length: int):
        """Returns inputs as (B, length, D)."""
        if x is None:
            _check_shape(name, (), (self.batch_size, length, self.hidden_size))
        if x.ndim == 2 and x.shape[0] % length == 0:
            x = x.reshape(-1, length, x.shape[1])
        B = x.shape[0] if self.batch_size is None else self.batch_size
        _check_shape(name, x.shape, (B, length, self.hidden_size))
        return x


@constexpr
def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises UserError where a shape is another; runs while a graph is compiled, where none can be raised."""
    if tuple(found) != tuple(wanted):
        raise UserError(
            f"{name} is {tuple(found) or 'missing'}, expected {tuple(wanted)}; the cell was made for these sizes"
        )


class _Layer(blocks.Layer):
    """What both kinds of layers share beside the parts of models.transformer."""

    def __init__(self, config: TransformerConfig, norms: int, act, post_layernorm_residual: bool, moe: MoEConfig):
        super().__init__(config, norms)
        self.norm_is_residual = post_layernorm_residual
        self.feed_forward = _feed_forward(config, act, moe)

    def add(self, x, normed, update):
        """What comes out of a sub-layer."""
        return (normed if self.norm_is_residual else x) + self.dropout(update)

    def attend_to_itself(self, x, mask):
        """The first sub-layer; returns its output, keys and values."""
        attention, normed = self.self_attn, self.norms[0](x)
        q, k, v = kernels.split_packed(attention.in_proj(normed), attention.heads, False)
        return self.add(x, normed, _attend(attention, q, k, v, mask)), _present(k, v)

    def transform(self, x):
        """The last sub-layer."""
        normed = self.norms[-1](x)
        return self.add(x, normed, self.feed_forward(normed))


class EncoderLayer(_Layer):
    """Self-attention and feed-forward."""

    def __init__(self, config: TransformerConfig, *rest):
        super().__init__(config, 2, *rest)

    def construct(self, x_BSD, mask_BSS):
        """Returns the output (B, S, D), and keys and values."""
        x_BSD, present = self.attend_to_itself(x_BSD, mask_BSS)
        return self.transform(x_BSD), present


class DecoderLayer(_Layer):
    """Self-attention, attention to the encoder's output, and feed-forward."""

    def __init__(self, config: TransformerConfig, *rest):
        super().__init__(config, 3, *rest)
        self.multihead_attn = blocks.CrossAttention(config)

    def construct(self, x_BTD, memory_BSD, mask_BTT, mask_BTS):
        """Returns the output (B, T, D), keys and values of the target, and of the source."""
        x_BTD, present = self.attend_to_itself(x_BTD, mask_BTT)
        attention, normed = self.multihead_attn, self.norms[1](x_BTD)
        k, v = attention.memory(memory_BSD)
        q = attention.q_proj(normed).reshape(*normed.shape[:2], attention.heads, attention.head_width)
        x_BTD = self.add(x_BTD, normed, _attend(attention, q, k, v, mask_BTS))
        return self.transform(x_BTD), (*present, *_present(k, v))


def _attend(attention, q, k, v, mask):
    p = attention.dropout if attention.training else 0.0
    return attention.out_proj(attend_masked(q, k, v, attention.scale, mask, p))


def _present(k_BTHC, v_BTHC):
    return ops.transpose(k_BTHC, (0, 2, 3, 1)), ops.transpose(v_BTHC, (0, 2, 1, 3))


class FeedForward(blocks.FeedForward):
    """The feed-forward layer with any activation."""

    def __init__(self, config: TransformerConfig, act):
        super().__init__(config)
        self.act = act

    def construct(self, x):
        """x (..., D) -> (..., D)."""
        h = self.linear1.gelu(x, "tanh") if self.act == "gelu" else self.act(self.linear1(x))
        return self.linear2(h)


def _feed_forward(config: TransformerConfig, act, moe: MoEConfig):
    if moe.expert_num == 1:
        return FeedForward(config, _activation(act))
    # The weights of a token's experts: as in the Switch Transformer for one, as in Mixtral for several.
    layer = MoE(
        config.d_model,
        config.ffn_dim,
        moe.expert_num,
        moe.num_experts_chosen,
        normalise=moe.num_experts_chosen > 1,
        capacity_factor=moe.capacity_factor,
    )
    # MoE makes Mixtral's gated experts; the book's are feed-forward layers like those that they replace.
    layer.experts = nn.CellList([FeedForward(config, _activation(act)) for _ in range(moe.expert_num)])
    return layer


def _activation(act):
    if act == "gelu" or (isinstance(act, nn.Cell) and callable(act)):
        return act
    if isinstance(act, type) and issubclass(act, nn.Cell):
        return act()
    known = sorted(mindspore_activations._activation)
    if act not in known:
        raise UserError(
            f"hidden_act is {act!r}{nearest(str(act), known)}, expected a Cell, its class, or one of {', '.join(known)}"
        )
    return nn.get_activation(act)


def _moe_config(given) -> MoEConfig:
    values = dict(given) if isinstance(given, Mapping) else vars(given or MoEConfig())
    known = {field.name for field in dataclasses.fields(MoEConfig)}
    strange = next((name for name in values if name not in known), None)
    if strange is not None:
        raise UserError(f"moe_config has {strange}{nearest(strange, known)}; known are {', '.join(sorted(known))}")
    return MoEConfig(**values)


def _check_choices(types: dict, use_past: bool, parallel_config) -> None:
    for name, dtype in types.items():
        if dtype != ms.float32:
            raise UserError(f"{name} is {dtype}, and all kernels here compute in float32; leave it out")
    if use_past:
        raise UserError(
            "use_past is True, and this cell keeps no keys and values between calls; leave it out, and decode with "
            "msllm.pipeline, which has a cache"
        )
    if parallel_config not in (None, ParallelConfig()):
        raise UserError(
            "parallel_config is not the default, and models know nothing of workers here; leave it out, and give "
            "parallel=ParallelConfig(...) to msllm.Trainer"
        )


_NAMES = {
    "d_model": "hidden_size",
    "ffn_dim": "ffn_hidden_size",
    "attention_heads": "num_heads",
    "attention_dropout": "attention_dropout_rate",
    "dropout": "hidden_dropout_rate",
    "max_positions": "src_seq_length and tgt_seq_length",
}


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """Errors of the configuration name the arguments of the cell."""
    try:
        yield
    except UserError as e:
        words = str(e).removeprefix("config.json: ").split(" ")
        raise UserError(" ".join(_NAMES.get(word, word) for word in words)) from None
