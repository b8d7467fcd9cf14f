"""GPT-2 in MindSpore with twelve expressions hidden behind the name MASK: fill in each of them.

Replace MASK by an expression; the comment beside it says what is asked for. Everything else stays as it is: the checker
gives this model and msllm's GPT2LMHeadModel the same random weights, runs both, and names the first tensor that
differs. Fill them in in any order: what is computed before the first open MASK is checked too.

Shapes: B sentences, T tokens, D width, H heads, C = D / H width of a head, V vocabulary. Source: Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.3; Vaswani et al. 2017, section 3.2.
"""
# ruff: noqa: F401, F821, F841, RUF059 (MASK is no name, and what it stands for uses the others)

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


class Linear(nn.Cell):
    """y = x W^T + b; W (O, I), b (O,)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight, self.bias = zeros(outputs, inputs), zeros(outputs)

    def construct(self, x):
        return ops.matmul(x, self.weight.T) + self.bias


class Embedding(nn.Cell):
    """Looks ids (...) up in a table of ``rows`` vectors: (..., D)."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = zeros(rows, width)

    def construct(self, ids):
        return ops.gather(self.weight, ids, 0)


class LayerNorm(nn.Cell):
    """Gives each vector of the last axis mean 0 and variance 1, then a scale and a shift of each dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = zeros(width), zeros(width), eps

    def construct(self, x):
        centred = x - ops.mean(x, -1, keep_dims=True)
        variance = ops.mean(centred * centred, -1, keep_dims=True)
        return centred / ops.sqrt(variance + self.eps) * self.weight + self.bias


class GPT2Attention(nn.Cell):
    """Causal multi-head attention; one projection makes queries, keys and values."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def split_heads(self, x_BTD):
        """(B, T, D) -> (B, H, T, C): the D numbers of a token are those of head 0, of head 1, and so on."""
        B, T, D = x_BTD.shape
        H, C = self.heads, D // self.heads
        return MASK  # (1) two steps: reshape so that D becomes H and C, then exchange two axes

    def weights(self, q_BHTC, k_BHTC):
        """How much each query looks at each key, (B, H, T, T); the last axis is that of the keys."""
        T, C = q_BHTC.shape[2:]
        scores = ops.matmul(q_BHTC, k_BHTC.swapaxes(2, 3)) * MASK  # (2) the scale of the scores
        query, key = ops.arange(T)[:, None], ops.arange(T)[None, :]
        visible = MASK  # (3) bool (T, T): whether a query may look at a key; compare the two
        # Not -inf: MindSpore's softmax of a row that sees nothing would spoil other rows too.
        scores = ops.masked_fill(scores, ops.logical_not(visible), -1e10)
        return MASK  # (4) the scores of each query as weights that add up to 1

    def merge_heads(self, x_BHTC):
        """(B, H, T, C) -> (B, T, D): undoes split_heads."""
        B, H, T, C = x_BHTC.shape
        return MASK  # (5) the two steps of split_heads backwards

    def construct(self, x_BTD):
        q, k, v = (self.split_heads(part) for part in ops.split(self.c_attn(x_BTD), x_BTD.shape[2], axis=2))
        return self.c_proj(self.merge_heads(ops.matmul(self.weights(q, k), v)))


class GPT2MLP(nn.Cell):
    """Two linear maps, the first to four times the width, with a GELU between."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def gelu(self, x):
        """0.5 x (1 + tanh(u)); sigmoid(2u) is 0.5 (1 + tanh(u)), and more exact than MindSpore's tanh on a CPU."""
        u = MASK  # (6) sqrt(2 / pi) (x + 0.044715 x^3)
        return x * ops.sigmoid(2.0 * u)

    def construct(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class GPT2Block(nn.Cell):
    """Attention and a feed-forward layer, each with a norm and a residual connection."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def construct(self, x):
        x = x + self.attn(MASK)  # (7) what attention reads: GPT-1 put the norm behind the sum; where does GPT-2?
        return MASK  # (8) the same for ln_2 and mlp


class GPT2Model(nn.Cell):
    """Token ids (B, T) to hidden states (B, T, D)."""

    def __init__(self, config):
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nn.CellList([GPT2Block(config) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def construct(self, input_ids):
        T = input_ids.shape[1]
        position_ids = MASK  # (9) the position of each token, (T,), counted from 0
        x = MASK  # (10) the first hidden states, of tokens and positions
        for block in self.h:
            x = block(x)
        return MASK  # (11) what is left to do after the last block, because no block ends with a norm


class GPT2LMHeadModel(nn.Cell):
    """Logits (B, T, V) of each next token."""

    def __init__(self, config):
        super().__init__()
        self.transformer = GPT2Model(config)

    def construct(self, input_ids):
        hidden = self.transformer(input_ids)
        weight = MASK  # (12) the head's weight (V, D), which is not a parameter of its own: it is tied
        return ops.matmul(hidden, weight.T)


def zeros(*shape: int) -> Parameter:
    """A parameter of a shape, to be given its values later. Given: leave it."""
    return Parameter(Tensor(np.zeros(shape, np.float32)))


def run(config, prepare, input_ids: np.ndarray):
    """Builds the model, hands it to ``prepare``, which gives it weights, and returns the logits. Given: leave it."""
    model = GPT2LMHeadModel(config)
    prepare(model)
    return model(Tensor(input_ids, ms.int32))
