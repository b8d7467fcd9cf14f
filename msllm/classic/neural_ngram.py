"""The feed-forward language model (Bengio et al. 2003). Shapes: B batch, T tokens, N context ids, D width of an id's
vector, F hidden units, V vocabulary."""

import dataclasses

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm.layers import CrossEntropy, Embedding, Linear
from msllm.models.config import ModelConfig
from msllm.models.pretrained import PretrainedModel


@dataclasses.dataclass(kw_only=True)
class NeuralNGramConfig(ModelConfig):
    """Sizes of a NeuralNGram.

    Args:
        context_size: N, the ids that a prediction looks at: n - 1 in the paper.
        embedding_size: D, m in the paper.
        hidden_size: F, h in the paper.
        direct_connections: whether the vectors also go straight to the output, W in the paper.
    """

    model_type: str = "neural_ngram"
    context_size: int = 8
    embedding_size: int = 32
    hidden_size: int = 256
    direct_connections: bool = False

    def check(self) -> None:
        super().check()
        self._positive("context_size", "embedding_size", "hidden_size")


class NeuralNGram(PretrainedModel):
    """y = b + W x + U tanh(d + H x), where x is the vectors of the N ids before, side by side (equation 1).

    Ids that share their neighbours get vectors that are alike, so what is learnt of one context serves for others that
    were never seen: that is what counting cannot do. But H has a block for each of the N places, and what stands
    further back does not exist.

    All positions of a row are predicted at once; what would stand before the row is one more, empty id.
    """

    config_class = NeuralNGramConfig

    def __init__(self, config: NeuralNGramConfig):
        super().__init__(config)
        self.cross_entropy = CrossEntropy()
        N, D, F, V = config.context_size, config.embedding_size, config.hidden_size, config.vocab_size
        self.embedding = Embedding(V + 1, D, 1.0)
        self.hidden = Linear(N * D, F, std=(N * D) ** -0.5)
        self.output = Linear(F, V, std=F**-0.5)
        self.direct = Linear(N * D, V, bias=False, std=(N * D) ** -0.5) if config.direct_connections else None

    def construct(self, input_ids, attention_mask=None, position_ids=None, row_start=None):
        """Returns logits (B, T, V) for the id after each of input_ids, int32 (B, T).

        Padding stands on the right, where no other id sees it, so attention_mask changes nothing; position_ids have no
        place here; row_start (packed documents) is refused with ValueError.
        """
        refuse_packed(row_start)
        B, T = input_ids.shape
        N = self.config.context_size
        # The ids t - N + 1 to t for each t.
        places = Tensor(np.arange(T, dtype=np.int32)[:, None] + np.arange(N, dtype=np.int32))
        empty = ops.full((B, N - 1), self.config.vocab_size, dtype=ms.int32)
        ids_BTN = ops.gather(ops.concat((empty, input_ids), 1) if N > 1 else input_ids, places, 1)
        x = ops.reshape(self.embedding(ids_BTN), (B, T, -1))
        # tanh(a) = 2 sigmoid(2a) - 1: ops.tanh is only good to 1e-4 on the CPU.
        logits = self.output(2.0 * ops.sigmoid(2.0 * self.hidden(x)) - 1.0)
        return logits if self.direct is None else logits + self.direct(x)


def refuse_packed(row_start) -> None:
    """Raises ValueError for rows of several documents, which only attention can keep apart."""
    if row_start is not None:
        raise ValueError("this model cannot keep packed documents apart; give it one document a row")
