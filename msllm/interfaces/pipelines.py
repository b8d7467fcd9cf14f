"""pipeline(task, model): texts in, what transformers' pipeline of that task gives out."""

import importlib
import re
from pathlib import Path

from mindspore import nn

from msllm.errors import UserError, nearest
from msllm.interfaces.auto import refuse_preset
from msllm.interfaces.base import Pipeline
from msllm.models.pretrained import model_class, read_config
from msllm.tuning.lora import CONFIG as ADAPTER

# task -> its pipeline
TASKS = {
    "text-generation": "writers:TextGeneration",
    "translation": "writers:Translation",
    "summarization": "writers:Summarization",
    "text-classification": "readers:TextClassification",
    "token-classification": "readers:TokenClassification",
    "question-answering": "readers:QuestionAnswering",
    "fill-mask": "readers:FillMask",
    "feature-extraction": "readers:FeatureExtraction",
    "embeddings": "readers:Embeddings",
}
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "summarisation": "summarization",
}
# What the name of a model's class ends with -> what it is mostly for.
_PURPOSES = {
    "LMHeadModel": "text-generation",
    "ForCausalLM": "text-generation",
    "ForTranslation": "translation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "BertModel": "feature-extraction",
}


def pipeline(
    task: str | None = None, model: str | Path | nn.Cell | None = None, tokenizer=None, batch_size: int = 8, **options
) -> Pipeline:
    """Returns a function of a text, or of a list of them, for a task.

    ======================  ============================================  ====================================
    task                    input                                         result of one input
    ======================  ============================================  ====================================
    text-generation         str, or a chat: [{"role":, "content":}, ...]  [{"generated_text"}]
    translation             str                                           {"translation_text"}
    summarization           str                                           {"summary_text"}
    text-classification     str, {"text", "text_pair"}, or                {"label", "score"}
                            {"context", "choices"}
    token-classification    str                                           [{"entity", "score", "index", "word",
                                                                          "start", "end"}, ...]
    question-answering      {"question", "context"}                       {"score", "start", "end", "answer"}
    fill-mask               str with [MASK]                               [{"score", "token", "token_str",
                                                                          "sequence"}, ...]
    feature-extraction      str                                           float32 (1, T, D)
    embeddings              str                                           float32 (D,)
    ======================  ============================================  ====================================

    A list of inputs gives a list of such results. One input gives its own; one dict of a text comes in a list of one,
    as from transformers.

    Args:
        task: one of these, with - or _, or an alias (ner, sentiment-analysis, translation_de_to_en); None: what the
            model is for.
        model: Hugging Face folder, adapter folder for tasks that write, or a model.
        tokenizer: a Tokenizer or its folder; None: the model's folder.
        batch_size: inputs a forward pass.
        options: of every call, see the ``options`` of the class; a call may have others.

    Raises:
        UserError: an unknown task or option; a model that is not for the task; a tokenizer that is not the model's.
    """
    if model is None:
        raise UserError("model is missing; give pipeline the folder of a model, or a model and its tokenizer")
    if not isinstance(model, nn.Cell):
        refuse_preset(model, "train it first, or give the folder of a trained model")
    name = purpose(model) if task is None else find_task(task)
    module, kind = TASKS[name].split(":")
    found = getattr(importlib.import_module(f"msllm.interfaces.{module}"), kind)
    return found(name, model, tokenizer, {"batch_size": batch_size, **options})


def find_task(task: str) -> str:
    """Returns the name of a task in TASKS; UserError where it is unknown."""
    name = task.strip().lower().replace("_", "-")
    if re.fullmatch(r"translation-\w+-to-\w+", name):
        name = "translation"
    name = ALIASES.get(name, name)
    if name not in TASKS:
        raise UserError(
            f"unknown task {task!r}{nearest(name, [*TASKS, *ALIASES])}; known are {', '.join([*TASKS, *ALIASES])}"
        )
    return name


def purpose(model: str | Path | nn.Cell) -> str:
    """Returns the task that a model is for; UserError where its class does not tell."""
    if isinstance(model, nn.Cell):
        kind = type(model).__name__
    elif (Path(model) / ADAPTER).is_file() and not (Path(model) / "config.json").is_file():
        return "text-generation"
    else:
        kind = model_class(read_config(model), Path(model) / "config.json").__name__
    found = next((task for end, task in _PURPOSES.items() if kind.endswith(end)), None)
    if found is None:
        raise UserError(f"what a {kind} is for is not known; name a task: {', '.join(TASKS)}")
    return found
