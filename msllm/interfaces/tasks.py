"""What a task tells a Trainer: which model, which data, which loss, which figures; the loop is always the same."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mindspore as ms
from mindspore import nn

from msllm.errors import UserError
from msllm.models.config import ModelConfig
from msllm.models.pretrained import PretrainedModel, check_vocabulary
from msllm.tokenization import Tokenizer, load_tokenizer
from msllm.training.arguments import TrainingArguments
from msllm.training.objective import Objective

Model = str | Path | ModelConfig | nn.Cell

TASKS = {
    "text-generation": "language_tasks:TextGeneration",
    "summarization": "language_tasks:Summarization",
    "fill-mask": "language_tasks:FillMask",
    "translation": "language_tasks:Translation",
    "text-classification": "labelled_tasks:TextClassification",
    "token-classification": "labelled_tasks:TokenClassification",
    "question-answering": "labelled_tasks:QuestionAnswering",
    "similarity": "labelled_tasks:Similarity",
    "multiple-choice": "labelled_tasks:MultipleChoice",
}


def task_class(name: str) -> "type[Task]":
    """Returns the class of a task in TASKS."""
    module, kind = TASKS[name].split(":")
    return getattr(importlib.import_module(f"msllm.interfaces.{module}"), kind)


@dataclasses.dataclass
class Data:
    """What a training.Trainer learns from, or is measured by.

    Attributes:
        records: as they were read, for figures.
        examples: encoded.
        objective: of the model on them.
        args: options of the run, which the data may complete.
    """

    records: Any
    examples: Sequence[Mapping]
    objective: Objective
    args: TrainingArguments


@dataclasses.dataclass(kw_only=True)
class Task:
    """Base of the tasks; their fields are the options that a Trainer takes for them.

    Class attributes:
        pipeline: of msllm.interfaces.pipelines, that predicts.
        adapts: whether adapters may be trained.

    Args:
        limit: use only the first records of each source.
    """

    pipeline: ClassVar[str] = ""
    adapts: ClassVar[bool] = False

    limit: int | None = None

    def begin(self, model: Model) -> None:
        """Looks at a model, before data are read for it."""

    def read(self, source) -> Any:
        """Returns the records of a file, a folder or a name, or of a list of records."""
        raise TypeError(f"{type(self).__name__} does not say how it reads data")

    def open(self, model: Model, tokenizer: Tokenizer | None, records: Any, seed: int) -> tuple[nn.Cell, Tokenizer]:
        """Returns (network, tokenizer) for the records that come first."""
        raise TypeError(f"{type(self).__name__} does not say how it opens a model")

    def encode(self, network, tokenizer, records, args: TrainingArguments, world: int, training: bool) -> Data:
        """Returns records as examples; ``world`` data-parallel workers share a batch."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes data")

    def figures(self, network, tokenizer, data: Data) -> dict:
        """Returns figures of the evaluation data beside the losses."""
        return {}

    def logged(self, figures: dict) -> dict[str, float]:
        """Returns those that go to the log."""
        return figures

    def settings(self) -> dict | None:
        """Returns what else changes the losses; see training.Trainer."""
        return None

    def predicting(self) -> dict:
        """Returns options of the pipeline that this task's options say."""
        return {}

    def held_out(self, source) -> Any:
        """Returns what a source to train on carries to evaluate on, None where it carries nothing."""
        return None


def name_of(model: Model) -> str:
    """Returns what a model is called in messages."""
    if isinstance(model, ModelConfig):
        return f"the new {model.model_type}"
    return f"the {type(model).__name__}" if isinstance(model, nn.Cell) else str(model)


def new_network(kind: type[PretrainedModel], config: ModelConfig, seed: int) -> PretrainedModel:
    """Returns a model with the random weights of a seed."""
    ms.set_seed(seed)
    return kind(type(config).from_dict(config.to_dict() | kind.head_values()))


def checked(network: nn.Cell, tokenizer: Tokenizer | str | Path | None, model: Model) -> tuple[nn.Cell, Tokenizer]:
    """Returns both, the tokenizer opened; UserError where it is missing, or not the model's."""
    name = name_of(model)
    if tokenizer is None:
        raise UserError(f"tokenizer is missing, and {name} has no folder with one; give tokenizer= a folder")
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    check_vocabulary(tokenizer, network, name)
    return network, tokenizer


def records_of(source, kinds: type | tuple, load: Callable[[str], list], parse: Callable | None, limit: int | None):
    """Returns the records of one source or a list of sources.

    Args:
        source: a path or name, records, mappings, or a list of these.
        kinds: classes of records.
        load: (path or name) -> records.
        parse: (mapping, source) -> record; None where mappings are not read.
        limit: of each source, and of what is given as it is.

    Raises:
        UserError: something else.
    """
    sources = [source] if isinstance(source, str | Path | Mapping) else list(source)
    given, found = [], []
    for number, one in enumerate(sources, 1):
        if isinstance(one, str | Path):
            found += load(str(one))
        elif isinstance(one, kinds):
            given.append(one)
        elif isinstance(one, Mapping) and parse is not None:
            given.append(parse(one, f"record {number}"))
        else:
            raise UserError(f"record {number} is a {type(one).__name__}, expected a path, or a record of this task")
    found += given[:limit]
    if not found:
        raise UserError("there are no records; give a path, or a list of records")
    return found
