"""The tasks that a BERT is fine-tuned for, each with the same methods: what training, evaluation and prediction share.

A prediction is a dict that becomes a line of JSON.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from msllm.data.questions import Question, encode_questions, read_questions
from msllm.data.tagged import TaggedSentence, encode_tagged, read_tagged, tag_scheme
from msllm.data.tasks import LabelledText, encode_texts, label_list, read_texts
from msllm.errors import UserError
from msllm.evaluation.answers import answer_metrics, best_answers, is_chinese
from msllm.evaluation.classification import classification_figures
from msllm.evaluation.entities import entity_metrics
from msllm.evaluation.predictions import predict_batches
from msllm.generation.sampling import softmax
from msllm.training.objective import Objective
from msllm.training.task_objectives import QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION


@dataclasses.dataclass
class TextClassification:
    """A class for a text or a pair of texts.

    Attributes:
        labels: the names of the classes by number; those of the training data where None.
        label_names: what the labels of the files mean, label -> name; the names are then the labels.
        max_length: most tokens of an example.
    """

    architecture: ClassVar[str] = "BertForSequenceClassification"
    objective: ClassVar[Objective] = SEQUENCE_CLASSIFICATION
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")

    max_length: int
    labels: list[str] | None = None
    label_names: dict[str, str] | None = None

    def read(self, path: str, limit: int | None = None) -> list[LabelledText]:
        """Reads a file; see msllm.data.tasks.read_texts."""
        records = read_texts(path, limit)
        if self.label_names is None:
            return records
        strange = next((r for r in records if r.label is not None and r.label not in self.label_names), None)
        if strange is not None:
            raise UserError(
                f"{strange.source} has the label {strange.label!r}, the file of labels has only "
                f"{', '.join(self.label_names)}; correct one of them"
            )
        return [dataclasses.replace(r, label=self.label_names.get(r.label)) for r in records]

    def labels_of(self, records: Sequence[LabelledText]) -> list[str]:
        """Returns the labels of training data, in order."""
        if self.label_names is not None:
            return list(self.label_names.values())
        return label_list(r.label for r in records)

    def encode(self, records, tokenizer, training: bool = False):
        """Returns examples and a report; see msllm.data.tasks.encode_texts."""
        return encode_texts(records, tokenizer, self.labels, self.max_length)

    def predictions(self, records, examples, outputs) -> list[dict]:
        """Returns text, label, prediction and the probability of every class, the likeliest first."""
        lines = []
        for record, (logits,) in zip(records, outputs, strict=True):
            scores = dict(sorted(zip(self.labels, map(float, softmax(logits))), key=lambda pair: -pair[1]))
            given = {"text": record.text, "text_b": record.pair, "label": record.label}
            line = {k: v for k, v in given.items() if v is not None}
            lines.append({**line, "prediction": next(iter(scores)), "scores": scores})
        return lines

    def metrics(self, records, predictions: Sequence[dict]) -> dict:
        """Returns what classification_figures does."""
        return classification_figures([r.label for r in records], [p["prediction"] for p in predictions], self.labels)

    @staticmethod
    def place(record) -> str:
        """Returns where a record comes from, for messages."""
        return record.source

    @staticmethod
    def is_labelled(record) -> bool:
        """Whether a record can be compared with a prediction."""
        return record.label is not None


@dataclasses.dataclass
class TokenClassification:
    """A tag for each word, most often of entities; attributes as TextClassification's."""

    architecture: ClassVar[str] = "BertForTokenClassification"
    objective: ClassVar[Objective] = TOKEN_CLASSIFICATION
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "precision", "recall", "f1")

    max_length: int
    labels: list[str] | None = None

    def read(self, path: str, limit: int | None = None) -> list[TaggedSentence]:
        """Reads a file; see msllm.data.tagged.read_tagged."""
        return read_tagged(path, limit, self.labels)

    def labels_of(self, records: Sequence[TaggedSentence]) -> list[str]:
        """Returns the tags of training data, O first."""
        return sorted({tag for r in records for tag in r.tags}, key=lambda tag: (tag != "O", tag))

    def encode(self, records, tokenizer, training: bool = False):
        """Returns examples and a report; see msllm.data.tagged.encode_tagged."""
        return encode_tagged(records, tokenizer, self.labels, self.max_length)

    def predictions(self, records, examples, outputs) -> list[dict]:
        """Returns tokens, tags, predicted tags and their probabilities; a word that was cut off is O, at 0."""
        lines = []
        for record, example, (logits_TL,) in zip(records, examples, outputs, strict=True):
            scores_TL = softmax(logits_TL)
            best, score = scores_TL.argmax(-1), scores_TL.max(-1)
            line = {"tokens": list(record.tokens)}
            if record.tags is not None:
                line["tags"] = list(record.tags)
            line["prediction"] = [self.labels[best[i]] if i >= 0 else "O" for i in example["words"]]
            line["scores"] = [float(score[i]) if i >= 0 else 0.0 for i in example["words"]]
            lines.append(line)
        return lines

    def metrics(self, records, predictions: Sequence[dict]) -> dict:
        """Returns what entity_metrics does."""
        found = [p["prediction"] for p in predictions]
        return entity_metrics([r.tags for r in records], found, tag_scheme(self.labels))

    @staticmethod
    def place(record) -> str:
        """Returns where a record comes from, for messages."""
        return record.place(0)

    @staticmethod
    def is_labelled(record) -> bool:
        """Whether a record can be compared with a prediction."""
        return record.tags is not None


@dataclasses.dataclass
class QuestionAnswering:
    """The part of a text that answers a question.

    Attributes:
        max_length: most tokens of an example, question and window of the context together.
        doc_stride: tokens between the beginnings of two windows; None: as suits max_length, see encode_questions.
        max_answer_length: most tokens of an answer.
        language: "en" or "zh" says how answers are scored, "auto" goes by the questions; see msllm.evaluation.answers.
    """

    architecture: ClassVar[str] = "BertForQuestionAnswering"
    objective: ClassVar[Objective] = QUESTION_ANSWERING
    figures: ClassVar[tuple[str, ...]] = ("exact_match", "f1")

    max_length: int
    doc_stride: int | None = 128
    max_answer_length: int = 30
    language: str = "auto"
    labels: None = None

    def __post_init__(self):
        for name in ("doc_stride", "max_answer_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected 1 or more; change it")

    def read(self, path: str, limit: int | None = None) -> list[Question]:
        """Reads a file; see msllm.data.questions.read_questions."""
        return read_questions(path, limit)

    def labels_of(self, records: Sequence[Question]) -> None:
        """Returns None: there are no classes."""
        return None

    def encode(self, records, tokenizer, training: bool = False):
        """Returns examples and a report; see msllm.data.questions.encode_questions."""
        return encode_questions(records, tokenizer, self.max_length, self.doc_stride, training=training)

    def predictions(self, records, examples, outputs) -> list[dict]:
        """Returns id, question, answers, and the prediction with its place in the context and its probability."""
        lines = []
        answers = best_answers(records, examples, outputs, self.max_answer_length)
        for record, answer in zip(records, answers, strict=True):
            line = {"id": record.id, "question": record.question}
            if record.answers:
                line["answers"] = [text for text, _ in record.answers]
            place = {"prediction": answer.text, "start": answer.start, "end": answer.end, "score": answer.score}
            lines.append(line | place)
        return lines

    def metrics(self, records, predictions: Sequence[dict]) -> dict:
        """Returns what answer_metrics does."""
        chinese = is_chinese(records) if self.language == "auto" else self.language == "zh"
        figures = answer_metrics(records, [p["prediction"] for p in predictions], chinese)
        return figures | {"scored_as": "zh" if chinese else "en"}

    @staticmethod
    def place(record) -> str:
        """Returns where a record comes from, for messages."""
        return f"question {record.id}"

    @staticmethod
    def is_labelled(record) -> bool:
        """Whether a record can be compared with a prediction."""
        return bool(record.answers)


TASKS = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
}


def read_labelled(task, path: str, limit: int | None = None, needed: bool = True) -> list:
    """Reads a file whose records are all labelled, or all not where that is allowed.

    Raises:
        UserError: as task.read; a record without a label where others have one, or where it is needed.
    """
    records = task.read(path, limit)
    without = next((r for r in records if not task.is_labelled(r)), None)
    if without is not None and (needed or any(map(task.is_labelled, records))):
        raise UserError(f"{task.place(without)} has no label; name its column label, add it, or remove the record")
    return records


def evaluate(
    task, model, records, examples, pad_token_id: int | None, batch_size: int
) -> tuple[list[dict], dict | None]:
    """Returns the predictions for records, and their metrics, None where they have no labels.

    Args:
        task: of TASKS.
        records, examples: of read_labelled, and what task.encode made of them.
        pad_token_id, batch_size: see predict_batches.
    """
    outputs = predict_batches(model, examples, task.objective, pad_token_id, batch_size)
    predictions = task.predictions(records, examples, outputs)
    return predictions, task.metrics(records, predictions) if task.is_labelled(records[0]) else None


def headline(task, metrics: dict) -> dict[str, float]:
    """Returns the few figures of a task that a line of log has room for."""
    return {name: metrics[name] for name in task.figures if name in metrics}
