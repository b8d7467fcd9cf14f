"""What the models that predict the next token share: the head, tied or not, and the step of decoding."""

from mindspore import nn

from msllm import kernels
from msllm.layers import KVCache, Linear
from msllm.models.config import ModelConfig
from msllm.models.pretrained import PretrainedModel


class CausalLM(PretrainedModel):
    """A body and a head that predicts the next token; the head is the token embedding where the config ties them.

    A family names its parts as Hugging Face does and says how large its cache is.

    Args:
        config: tie_word_embeddings, vocab_size and initializer_range are read.
        body: from (input_ids, attention_mask, position_ids, row_start, cache) to hidden states (B, T, D).

    Class attributes:
        embedding_name: the token embedding's name in the body.
    """

    embedding_name = ""

    def __init__(self, config: ModelConfig, body: nn.Cell):
        super().__init__(config)
        setattr(self, self.base_model_prefix, body)
        self.tied = config.tie_word_embeddings
        if not self.tied:
            width = getattr(body, self.embedding_name).weight.shape[1]
            self.lm_head = Linear(width, config.vocab_size, False, config.initializer_range)

    def construct(self, input_ids, attention_mask=None, position_ids=None, row_start=None, cache=None):
        """Returns logits (B, T, V).

        Args:
            input_ids: int32 (B, T).
            attention_mask: int32 (B, S) over cached and new tokens, 1 = a real token; None where all are.
            position_ids: int32 (1 or B, T); default 0, 1, ... after the cached tokens, also in padded rows.
            row_start: int32 (B, T), the first key that a query may see, for packed documents.
            cache: a KVCache; the caller advances it (next_logits does).
        """
        if self.tied and cache is None and kernels.active() == "cpu":  # ms.jit takes no context, and has no need of one
            return self._tied_pass(input_ids, attention_mask, position_ids, row_start)
        body = getattr(self, self.base_model_prefix)
        return self.head(body(input_ids, attention_mask, position_ids, row_start, cache))

    def _tied_pass(self, input_ids, *rest):
        body = getattr(self, self.base_model_prefix)
        with kernels.tied(getattr(body, self.embedding_name).weight):
            return self.head(body(input_ids, *rest))

    def head(self, x_BTD):
        """Hidden states (B, T, D) to logits (B, T, V)."""
        if self.tied:
            embedding = getattr(getattr(self, self.base_model_prefix), self.embedding_name)
            return kernels.linear(x_BTD, embedding.weight)
        return self.lm_head(x_BTD)

    def make_cache(self, batch: int, length: int) -> KVCache:
        """Returns an empty KVCache for ``batch`` rows of ``length`` tokens."""
        layers, kv_heads, head_width = self.cache_shape
        return KVCache(layers, batch, length, kv_heads, head_width)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Layers, key-value heads and head width."""
        raise TypeError(f"{type(self).__name__} does not say what its cache looks like")

    @property
    def max_length(self) -> int | None:
        """The longest sequence that the model takes, in tokens; None where there is no bound."""
        return getattr(self.config, "max_position_embeddings", None)

    def next_logits(self, input_ids, attention_mask, position_ids, cache):
        """Runs T new tokens over ``cache`` and advances it; returns the last token's logits (B, V).

        Arguments as for construct.
        """
        T = input_ids.shape[1]
        x_BTD = getattr(self, self.base_model_prefix)(input_ids, attention_mask, position_ids, None, cache)
        cache.length += T
        return self.head(x_BTD[:, T - 1 :]).reshape(input_ids.shape[0], -1)

    def sanitize(self, tensors):
        """Leaves out what is not a parameter here: a tied head, and the rotary buffers of old files."""
        drop = (".rotary_emb.inv_freq", *(("lm_head.weight",) if self.tied else ()))
        return {name: tensor for name, tensor in tensors.items() if not name.endswith(drop)}
