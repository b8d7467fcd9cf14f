"""The LSTM language model (Mikolov et al. 2010 with the cell of Hochreiter and Schmidhuber 1997).

Shapes: B batch, T tokens, D width of an id's vector, F state width, V vocabulary.
"""

import dataclasses

from mindspore import nn

from msllm.classic.neural_ngram import refuse_packed
from msllm.layers import CrossEntropy, Dropout, Embedding, Linear
from msllm.models.config import ModelConfig
from msllm.models.pretrained import PretrainedModel


@dataclasses.dataclass(kw_only=True)
class LSTMConfig(ModelConfig):
    """Sizes of an LSTMForCausalLM.

    Args:
        embedding_size: D.
        hidden_size: F.
        num_hidden_layers: LSTMs on top of each other.
        dropout: probability of dropping what goes into and comes out of the LSTMs.
    """

    model_type: str = "lstm"
    embedding_size: int = 64
    hidden_size: int = 256
    num_hidden_layers: int = 1
    dropout: float = 0.0

    def check(self) -> None:
        super().check()
        self._positive("embedding_size", "hidden_size", "num_hidden_layers")


class LSTMForCausalLM(PretrainedModel):
    """Reads one id after the other; what it keeps of all of them is a state (h, c) of fixed size.

    i, f, o = sigmoid(...) and g = tanh(...) of W x_t + R h_(t-1) + b, then c_t = f c_(t-1) + i g and
    h_t = o tanh(c_t); the logits are linear in h_t. c is passed on by a product with f alone, so a gradient survives
    many steps where f is near 1 (Gers et al. 2000 added f).

    The recurrence is nn.LSTM, whose weights have PyTorch's names and layout. Every row starts from a zero state.
    """

    config_class = LSTMConfig

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.cross_entropy = CrossEntropy()
        D, F, V = config.embedding_size, config.hidden_size, config.vocab_size
        self.embedding = Embedding(V, D, 1.0)
        self.lstm = nn.LSTM(D, F, config.num_hidden_layers, batch_first=True)
        self.dropout = Dropout(config.dropout)
        self.output = Linear(F, V, std=F**-0.5)

    def construct(self, input_ids, attention_mask=None, position_ids=None, row_start=None):
        """Returns logits (B, T, V) for the id after each of input_ids, int32 (B, T).

        Padding stands on the right, where no other id sees it, so attention_mask changes nothing; position_ids have no
        place here; row_start (packed documents) is refused with ValueError.
        """
        refuse_packed(row_start)
        h_BTF, _ = self.lstm(self.dropout(self.embedding(input_ids)))
        return self.output(self.dropout(h_BTF))
