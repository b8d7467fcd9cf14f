"""What the models that predict the next token share: the head, the step of decoding, a classifier, GPT's files."""

from pathlib import Path

import numpy as np
from mindspore import nn, ops

from msllm import kernels
from msllm.errors import UserError
from msllm.layers import CrossEntropy, Dropout, Embedding, KVCache, Linear, drawn, positions
from msllm.models.config import ModelConfig
from msllm.models.pretrained import PretrainedModel
from msllm.models.weights import conv1d_to_linear, linear_to_conv1d


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
        self.tied, self.cross_entropy = config.tie_word_embeddings, CrossEntropy()
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
        # ms.jit takes no context, and has no need of one.
        if self.tied and cache is None and kernels.active() == "cpu" and type(self.embedding) is Embedding:
            return self._tied_pass(input_ids, attention_mask, position_ids, row_start)
        body = getattr(self, self.base_model_prefix)
        return self.head(body(input_ids, attention_mask, position_ids, row_start, cache))

    def _tied_pass(self, input_ids, *rest):
        with kernels.tied(self.embedding.weight):
            return self.head(self.body(input_ids, *rest))

    @property
    def body(self) -> nn.Cell:
        """What lies below the head."""
        return getattr(self, self.base_model_prefix)

    @property
    def embedding(self) -> Embedding:
        """The table of tokens."""
        return getattr(self.body, self.embedding_name)

    def head(self, x_BTD):
        """Hidden states (B, T, D) to logits (B, T, V)."""
        if self.tied:
            return self.embedding.logits(x_BTD)
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


def require_causal(model: nn.Cell, name: str | Path) -> None:
    """Raises UserError where a model does not predict the next token; ``name`` is named in it."""
    if not isinstance(model, CausalLM):
        raise UserError(
            f"{name} holds a {type(model).__name__}, which does not predict the next token; "
            f"give a GPT, GPT-2, LLaMA or BLOOM folder"
        )


class SequenceClassifier(PretrainedModel):
    """The body of a causal model and a linear map of one token's hidden state onto classes, without a bias.

    That token has seen all before it: mostly the last one (Radford et al. 2018, section 3.2).

    Args:
        config: num_labels, initializer_range and summary_first_dropout, the dropout before the map, are read.
        body: see CausalLM.
    """

    embedding_name = ""
    new_heads = ("score.",)
    task_heads = ("score.",)

    def __init__(self, config: ModelConfig, body: nn.Cell):
        super().__init__(config)
        setattr(self, self.base_model_prefix, body)
        self.dropout = Dropout(config.summary_first_dropout)
        width = self.word_embedding.shape[1]
        self.score = Linear(width, config.num_labels, False, config.initializer_range)

    @property
    def word_embedding(self):
        """The parameter (V, D)."""
        return getattr(getattr(self, self.base_model_prefix), self.embedding_name).weight

    def construct(self, input_ids, attention_mask=None, ends=None, words: bool = False):
        """Returns (logits (B, L),), with ``words`` also the next tokens' logits (B, T, V), through the embedding.

        Args:
            input_ids, attention_mask: as for CausalLM.
            ends: int32 (B,), the place of the token that is classified in the flat batch, b * T + t; default the last
                real token of each row.
        """
        if words and kernels.active() == "cpu":
            with kernels.tied(self.word_embedding):
                return self._logits(input_ids, attention_mask, ends, words)
        return self._logits(input_ids, attention_mask, ends, words)

    def _logits(self, input_ids, attention_mask, ends, words):
        x_BTD = getattr(self, self.base_model_prefix)(input_ids, attention_mask)
        B, T, D = x_BTD.shape
        if ends is None:
            places = positions(T) + 1
            last = ops.broadcast_to(places, (B, T)) if attention_mask is None else places * attention_mask
            ends = last.max(axis=1) - 1 + positions(B).reshape(-1) * T
        logits = self.score(self.dropout(kernels.embedding(ends, x_BTD.reshape(-1, D))))
        return (logits, kernels.linear(x_BTD, self.word_embedding)) if words else (logits,)

    @classmethod
    def with_more_words(cls, tensors, config):
        """Gives the tokens that a file does not know random embeddings; see from_body."""
        name = next(name for name in tensors if name.endswith(f"{cls.embedding_name}.weight"))
        count, width = tensors[name].shape
        new = drawn((config.vocab_size - count, width), config.initializer_range)
        return {**tensors, name: np.concatenate([tensors[name], new])}

    def sanitize(self, tensors):
        """Leaves out a head that predicts words."""
        return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


class GPTFamily:
    """What the classes of GPT and GPT-2 share: the names of their parts and sizes, and the layout of their files."""

    base_model_prefix = "transformer"

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        c = self.config
        return c.n_layer, c.n_head, c.n_embd // c.n_head

    @property
    def max_length(self) -> int:
        return self.config.n_positions

    def sanitize(self, tensors):
        """Transposes Conv1D weights; drops the causal masks that old files carry."""
        return conv1d_to_linear(super().sanitize(tensors))

    def unsanitize(self, tensors):
        return linear_to_conv1d(tensors)
