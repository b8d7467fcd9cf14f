"""msllm: large language models on MindSpore, from a laptop to an Ascend cluster."""

import os

from msllm.lazy import exports

# MindSpore's generated protobuf files load with the pure Python implementation only. It sets this itself, but too late
# where something else (a SentencePiece file) brings protobuf in first.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

__version__ = "0.1.0"


def from_pretrained(folder):
    """Loads a model from a Hugging Face folder; see msllm.models.pretrained.from_pretrained."""
    from msllm.models.pretrained import from_pretrained as load  # MindSpore takes seconds to import

    return load(folder)


def load_tokenizer(folder):
    """Loads the tokenizer of a Hugging Face folder; see msllm.tokenization.load_tokenizer."""
    from msllm.tokenization import load_tokenizer as load

    return load(folder)


_AUTO = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
)
_names, __getattr__ = exports(
    __name__,
    {
        **dict.fromkeys(_AUTO, "interfaces.auto"),
        "ParallelConfig": "parallel.config",
        "Trainer": "interfaces.trainer",
        "TrainingArguments": "training.arguments",
        "Transformer": "interfaces.transformer",
        "pipeline": "interfaces.pipelines",
    },
)
__all__ = ["__version__", "from_pretrained", "load_tokenizer", *_names]
