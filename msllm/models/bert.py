"""BERT (Devlin et al. 2019). Shapes: B batch, T tokens, D width, H heads, C head width, V vocabulary.

Every class is called as model(input_ids, attention_mask, token_type_ids, position_ids) and returns a tuple, as
transformers does with return_dict=False.
"""

import dataclasses

from mindspore import nn, ops

from msllm import kernels
from msllm.layers import (
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    attend,
    parameter,
    positions,
)
from msllm.layers.basic import GELU_KINDS
from msllm.models.config import LabelledConfig
from msllm.models.pretrained import PretrainedModel

DEFAULT_ARCHITECTURE = "BertForMaskedLM"


@dataclasses.dataclass(kw_only=True)
class BertConfig(LabelledConfig):
    """Hugging Face's config.json of a BERT."""

    model_type: str = "bert"
    architectures: list[str] = dataclasses.field(default_factory=lambda: ["BertForMaskedLM"])
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = None

    def check(self) -> None:
        super().check()
        self._positive(
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
        self._divides("num_attention_heads", "hidden_size")
        self._one_of("hidden_act", *GELU_KINDS)
        self._shares("hidden_dropout_prob", "attention_probs_dropout_prob")
        self._one_of("tie_word_embeddings", True)


class BertEmbeddings(nn.Cell):
    """norm(word + position + segment)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        D, std = config.hidden_size, config.initializer_range
        self.max_positions = config.max_position_embeddings
        self.word_embeddings = Embedding(config.vocab_size, D, std)
        self.position_embeddings = Embedding(config.max_position_embeddings, D, std)
        self.token_type_embeddings = Embedding(config.type_vocab_size, D, std)
        self.LayerNorm = LayerNorm(D, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def construct(self, input_ids, token_type_ids, position_ids):
        T = input_ids.shape[1]
        if position_ids is None:
            if self.max_positions < T:
                raise ValueError(f"{T} tokens do not fit into {self.max_positions} positions")
            position_ids = positions(T)
        if token_type_ids is None:
            token_type_ids = ops.zeros_like(input_ids)
        tables = (self.word_embeddings.weight, self.token_type_embeddings.weight, self.position_embeddings.weight)
        x_BTD = kernels.embedding_sum((input_ids, token_type_ids, position_ids), tables)
        return self.dropout(self.LayerNorm(x_BTD))


class BertSelfAttention(nn.Cell):
    """Attention in both directions."""

    def __init__(self, config: BertConfig):
        super().__init__()
        D, H, std = config.hidden_size, config.num_attention_heads, config.initializer_range
        self.heads, self.head_width, self.scale = H, D // H, (D // H) ** -0.5
        self.dropout = config.attention_probs_dropout_prob
        self.query, self.key, self.value = Linear(D, D, std=std), Linear(D, D, std=std), Linear(D, D, std=std)

    def construct(self, x_BTD, key_mask):
        B, T, _ = x_BTD.shape
        shape = (B, T, self.heads, self.head_width)
        q_BTHC, k_BTHC = self.query(x_BTD).reshape(shape), self.key(x_BTD).reshape(shape)
        return attend(
            q_BTHC,
            k_BTHC,
            self.value(x_BTD).reshape(shape),
            self.scale,
            False,
            key_mask,
            dropout=self.dropout if self.training else 0.0,
        )


class BertOutput(nn.Cell):
    """norm(residual + dropout(dense(x))): what ends both halves of a layer."""

    def __init__(self, config: BertConfig, in_features: int):
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size, std=config.initializer_range)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def construct(self, x, residual_BTD):
        return self.LayerNorm.add(residual_BTD, self.dropout(self.dense(x)))[1]


class BertAttention(nn.Cell):
    """Self-attention and its output."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def construct(self, x_BTD, key_mask):
        return self.output(self.self(x_BTD, key_mask), x_BTD)


class BertDense(nn.Cell):
    """A linear map and its activation, under Hugging Face's name ``dense``."""

    def __init__(self, config: BertConfig, out_features: int):
        super().__init__()
        self.dense = Linear(config.hidden_size, out_features, std=config.initializer_range)
        self.gelu_kind = GELU_KINDS[config.hidden_act]

    def construct(self, x_BTD):
        return self.dense.gelu(x_BTD, self.gelu_kind)


class BertLayer(nn.Cell):
    """Post-norm attention and feed-forward."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertDense(config, config.intermediate_size)
        self.output = BertOutput(config, config.intermediate_size)

    def construct(self, x_BTD, key_mask):
        x_BTD = self.attention(x_BTD, key_mask)
        return self.output(self.intermediate(x_BTD), x_BTD)


class BertEncoder(nn.Cell):
    """The stack of layers, under Hugging Face's name ``layer``."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.CellList([BertLayer(config) for _ in range(config.num_hidden_layers)])

    def construct(self, x_BTD, key_mask):
        for layer in self.layer:
            x_BTD = layer(x_BTD, key_mask)
        return x_BTD


class BertPooler(nn.Cell):
    """tanh of a linear map of the first token."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, std=config.initializer_range)

    def construct(self, x_BTD):
        return 2 * ops.sigmoid(2 * self.dense(x_BTD[:, 0])) - 1  # ops.tanh on the CPU is only good to 1e-4


class BertModel(PretrainedModel):
    """The body: returns (hidden states (B, T, D), pooled first token (B, D)), or hidden states alone."""

    config_class = BertConfig
    new_heads = ("pooler.",)

    def __init__(self, config: BertConfig, pooler: bool = True):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if pooler else None

    def construct(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        x_BTD = self.encoder(self.embeddings(input_ids, token_type_ids, position_ids), attention_mask)
        if self.pooler is None:
            return (x_BTD,)
        return x_BTD, self.pooler(x_BTD)

    def sanitize(self, tensors):
        """Takes the body out of a file that holds a head too."""
        body = {k.removeprefix("bert."): v for k, v in tensors.items() if k.startswith("bert.")}
        return _modern_names(body or tensors)


class BertHead(PretrainedModel):
    """Base of the classes that put a head on the body."""

    config_class = BertConfig
    base_model_prefix = "bert"
    new_heads = ("bert.pooler.", "cls.", "classifier.", "qa_outputs.")
    task_heads = ("classifier.", "qa_outputs.")

    def __init__(self, config: BertConfig, pooler: bool):
        super().__init__(config)
        self.bert = BertModel(config, pooler)
        self.has_pooler = pooler

    def sanitize(self, tensors):
        """Drops the decoder, which is the word embedding, and a pooler that this head has no use for."""
        drop = ("cls.predictions.decoder.",) + (() if self.has_pooler else ("bert.pooler.",))
        return {k: v for k, v in _modern_names(tensors).items() if not k.startswith(drop)}


class BertTransform(BertDense):
    """The dense layer and norm before the vocabulary."""

    def __init__(self, config: BertConfig):
        super().__init__(config, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def construct(self, x_BTD):
        return self.LayerNorm(self.dense.gelu(x_BTD, self.gelu_kind))


class BertPredictions(nn.Cell):
    """The masked-word head: the decoder's weight is the word embedding, its bias its own."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.transform = BertTransform(config)
        self.bias = parameter((config.vocab_size,))

    def construct(self, x_BTD, word_embedding_VD):
        return kernels.linear(self.transform(x_BTD), word_embedding_VD, self.bias)


class BertHeads(nn.Cell):
    """The pre-training heads, under Hugging Face's name ``cls``."""

    def __init__(self, config: BertConfig, masked: bool, next_sentence: bool):
        super().__init__()
        self.predictions = BertPredictions(config) if masked else None
        self.seq_relationship = Linear(config.hidden_size, 2, std=config.initializer_range) if next_sentence else None


class BertForMaskedLM(BertHead):
    """Returns (logits (B, T, V),)."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=False)
        self.cls = BertHeads(config, masked=True, next_sentence=False)

    def construct(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        x_BTD = self.bert(input_ids, attention_mask, token_type_ids, position_ids)[0]
        return (self.cls.predictions(x_BTD, self.bert.embeddings.word_embeddings.weight),)


class BertForNextSentencePrediction(BertHead):
    """Returns (logits (B, 2),); class 0 says that the second sentence follows the first."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=True)
        self.cls = BertHeads(config, masked=False, next_sentence=True)

    def construct(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        return (self.cls.seq_relationship(self.bert(input_ids, attention_mask, token_type_ids, position_ids)[1]),)


class BertForPreTraining(BertHead):
    """Returns (masked-word logits (B, T, V), next-sentence logits (B, 2))."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=True)
        self.cls = BertHeads(config, masked=True, next_sentence=True)

    def construct(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        x_BTD, pooled_BD = self.bert(input_ids, attention_mask, token_type_ids, position_ids)
        words = self.cls.predictions(x_BTD, self.bert.embeddings.word_embeddings.weight)
        return words, self.cls.seq_relationship(pooled_BD)


class BertClassifier(BertHead):
    """Dropout and a linear map onto the labels."""

    def __init__(self, config: BertConfig, pooler: bool):
        super().__init__(config, pooler)
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = Dropout(p)
        self.classifier = Linear(config.hidden_size, config.num_labels, std=config.initializer_range)


class BertForSequenceClassification(BertClassifier):
    """Returns (logits (B, labels),)."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=True)

    def construct(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        pooled_BD = self.bert(input_ids, attention_mask, token_type_ids, position_ids)[1]
        return (self.classifier(self.dropout(pooled_BD)),)


class BertForTokenClassification(BertClassifier):
    """Returns (logits (B, T, labels),)."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=False)

    def construct(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        x_BTD = self.bert(input_ids, attention_mask, token_type_ids, position_ids)[0]
        return (self.classifier(self.dropout(x_BTD)),)


class BertForQuestionAnswering(BertHead):
    """Returns (start logits (B, T), end logits (B, T)) of the answer's first and last token."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=False)
        self.qa_outputs = Linear(config.hidden_size, 2, std=config.initializer_range)

    def construct(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        x_BTD = self.bert(input_ids, attention_mask, token_type_ids, position_ids)[0]
        logits_BT2 = self.qa_outputs(x_BTD)
        return logits_BT2[:, :, 0], logits_BT2[:, :, 1]


def _modern_names(tensors):
    """Renames the norms of the first published files (gamma, beta) and drops their position buffer."""
    renamed = {}
    for name, tensor in tensors.items():
        if not name.endswith("embeddings.position_ids"):
            renamed[name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = (
                tensor
            )
    return renamed
