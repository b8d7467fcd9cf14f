"""Tasks whose models are fine-tuned on labelled data: classes, tags, answers, choices."""

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any, ClassVar

from mindspore import nn

from msllm.data.questions import Question
from msllm.data.tagged import TaggedSentence
from msllm.data.task_inputs import Choices
from msllm.data.tasks import LabelledText, labelled_text
from msllm.errors import UserError
from msllm.evaluation.task_models import check_batches, choose_labels, is_gpt, make_job, open_for_task
from msllm.evaluation.tasks import evaluate, headline, read_labelled
from msllm.interfaces.tasks import Data, Model, Task, checked, name_of, records_of
from msllm.tokenization import load_tokenizer


@dataclasses.dataclass(kw_only=True)
class Labelled(Task):
    """What these tasks share.

    Class attributes:
        name: of the task, as finetune-task knows it.
        kind: the class of their records.

    Args:
        max_length: most tokens of an example; None: as the task asks, or the model's positions where they are fewer.
        labels: all labels, in order; None: the model's where it has all of the data's, else the data's.
        lm_weight: of a GPT, what the loss of the next word counts; None: 0.5.

    Attributes:
        job: of msllm.evaluation, once a model is known.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[type] = LabelledText

    max_length: int | None = None
    labels: list[str] | None = None
    lm_weight: float | None = None
    job: Any = dataclasses.field(default=None, init=False)

    def begin(self, model: Model) -> None:
        source = model.config if isinstance(model, nn.Cell) else model
        self.job, self._network_class = make_job(
            self.name, source, self.max_length, self.labels, lm_weight=self.lm_weight, **self.more()
        )

    def more(self) -> dict:
        """Returns what else make_job is told."""
        return {}

    def read(self, source):
        parse = labelled_text if self.kind is LabelledText else None
        records = records_of(
            source, self.kind, lambda name: read_labelled(self.job, name, self.limit), parse, self.limit
        )
        if without := next((record for record in records if not self.job.is_labelled(record)), None):
            raise UserError(f"{self.job.place(without)} has no label; add it, or remove the record")
        return records

    def open(self, model, tokenizer, records, seed):
        source = model.config if isinstance(model, nn.Cell) else model
        choose_labels(self.job, records, source, self._network_class)
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(tokenizer)
        if isinstance(model, nn.Cell):
            self._check(model)
            network, tokenizer = checked(model, tokenizer, model)
        else:
            network, tokenizer = open_for_task(self.job, self._network_class, model, seed, tokenizer)
        tokenizer = copy.copy(tokenizer)  # it may be the user's
        # As transformers: what texts are cut to.
        tokenizer.config = {**tokenizer.config, "model_max_length": self.job.max_length}
        return network, tokenizer

    def _check(self, model: nn.Cell) -> None:
        wanted = self.job.labels
        if not isinstance(model, self._network_class) or (wanted is not None and model.config.labels != wanted):
            classes = "" if wanted is None else f" with the classes {', '.join(wanted)}"
            raise UserError(
                f"{name_of(model)} is not the {self._network_class.__name__}{classes} that {self.name} needs for these "
                f"data; give the folder of its body"
            )

    def encode(self, network, tokenizer, records, args, world, training):
        check_batches(self.name, args)
        examples, report = self.job.encode(records, tokenizer, training=training)
        print(f"{'training' if training else 'evaluation'} data: {report}", file=sys.stderr)
        return Data(records, examples, self.job.objective, args)

    def figures(self, network, tokenizer, data):
        size = data.args.per_device_eval_batch_size
        return evaluate(self.job, network, data.records, data.examples, tokenizer.pad_token_id, size)[1]

    def logged(self, figures):
        return headline(self.job, figures)

    def settings(self):
        return {"lm_weight": self.job.lm_weight} if is_gpt(type(self.job)) else None


@dataclasses.dataclass(kw_only=True)
class TextClassification(Labelled):
    """Classes of texts or of pairs of them; records are paths, {"text", "label"} or LabelledTexts.

    Args:
        label_names: file with a name for each label, see finetune-task.
    """

    name: ClassVar[str] = "text-classification"
    pipeline: ClassVar[str] = "text-classification"

    label_names: str | None = None

    def more(self):
        return {"label_names": self.label_names}


@dataclasses.dataclass(kw_only=True)
class TokenClassification(Labelled):
    """Tags of words; records are paths or TaggedSentences."""

    name: ClassVar[str] = "token-classification"
    pipeline: ClassVar[str] = "token-classification"
    kind: ClassVar[type] = TaggedSentence


@dataclasses.dataclass(kw_only=True)
class QuestionAnswering(Labelled):
    """Answers that are a part of a text; records are paths or Questions.

    Args:
        doc_stride: tokens between the beginnings of two windows of a long context.
        max_answer_length: most tokens of an answer.
        answer_language: how answers are scored, en, zh or auto.
    """

    name: ClassVar[str] = "question-answering"
    pipeline: ClassVar[str] = "question-answering"
    kind: ClassVar[type] = Question

    doc_stride: int = 128
    max_answer_length: int = 30
    answer_language: str = "auto"

    def more(self):
        names = {"doc_stride": self.doc_stride, "max_answer_length": self.max_answer_length}
        return {"answers": {**names, "language": self.answer_language}}

    def predicting(self):
        return {"max_answer_len": self.max_answer_length}


@dataclasses.dataclass(kw_only=True)
class Similarity(Labelled):
    """Whether two texts say the same, of a GPT; records as TextClassification's."""

    name: ClassVar[str] = "similarity"
    pipeline: ClassVar[str] = "text-classification"


@dataclasses.dataclass(kw_only=True)
class MultipleChoice(Labelled):
    """Which text goes on from a context, of a GPT; records are paths or Choices."""

    name: ClassVar[str] = "multiple-choice"
    pipeline: ClassVar[str] = "text-classification"
    kind: ClassVar[type] = Choices
