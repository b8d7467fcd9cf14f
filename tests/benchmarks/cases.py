"""What a case of each part says, and the configurations of models; dropout is 0 everywhere."""

import dataclasses

AXES = ("width", "layers", "length", "batch")


def gpt2(width: int = 768, layers: int = 12, heads: int = 12, vocab: int = 50257, positions: int = 1024) -> dict:
    """config.json of a GPT-2; GPT-2 small by default."""
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": vocab,
        "n_positions": positions,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def llama(width: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int = 32000) -> dict:
    """config.json of a LLaMA whose head is its own matrix (untied)."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
    }


def bert(width: int, layers: int, heads: int, inner: int, vocab: int = 30522) -> dict:
    """config.json of a BERT with the masked-word head."""
    return {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


@dataclasses.dataclass(frozen=True)
class Train:
    """A train step; ``goal``: most time as a share of eager PyTorch's."""

    name: str
    config: dict
    batch: int
    length: int
    goal: float
    rounds: int = 21
    compiled: bool = True


@dataclasses.dataclass(frozen=True)
class Decode:
    """Greedy decoding; goals: least speed as a multiple of PyTorch's, least share of the bandwidth (or none)."""

    name: str
    config: dict
    batch: int
    goal: float
    share_goal: float | None
    prompt: int = 32
    new: int = 128
    rounds: int = 7


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Time to the first token after ``length`` tokens; ``goal``: most time as a share of PyTorch's."""

    name: str
    config: dict
    length: int
    goal: float
    rounds: int = 7


@dataclasses.dataclass(frozen=True)
class Memory:
    """Peak of a train step of one row at each length; ``goal``: most growth where the length doubles."""

    name: str
    config: dict
    lengths: tuple[int, ...]
    goal: float


@dataclasses.dataclass(frozen=True)
class Startup:
    """``msllm generate`` from its start to the first output; ``goal``: most seconds."""

    name: str
    config: dict
    goal: float
    runs: int = 5
    warm_up: bool = True


@dataclasses.dataclass(frozen=True)
class Growth:
    """A train step around ``base`` (values for AXES), one axis at a time over ``values``; heads are 64 wide."""

    name: str
    base: dict[str, int]
    values: dict[str, tuple[int, ...]]
    vocab: int = 1000
    head_width: int = 64
    steps: int = 15


@dataclasses.dataclass(frozen=True)
class Steady:
    """``steps`` train steps in one process, summed up every ``chunk``."""

    name: str
    config: dict
    batch: int
    length: int
    steps: int = 2000
    chunk: int = 100
