"""The tasks that a GPT is fine-tuned for (Radford et al. 2018, section 3.3); methods as in msllm.evaluation.tasks.

A prediction is a dict that becomes a line of JSON.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from msllm.data.task_inputs import Choices, encode_sequences, read_choices
from msllm.evaluation.tasks import TextClassification
from msllm.generation.sampling import softmax
from msllm.training.objective import Objective
from msllm.training.sequence_objectives import sequence_objective


@dataclasses.dataclass
class SequenceClassification(TextClassification):
    """A class for a text, or for a premise and a hypothesis.

    Attributes:
        lm_weight: what the next-word loss counts beside the classes'.
    """

    architecture: ClassVar[str] = "ForSequenceClassification"
    kind: ClassVar[str] = "classification"

    lm_weight: float = 0.0

    @property
    def objective(self) -> Objective:
        """See msllm.training.sequence_objectives."""
        return sequence_objective(self.kind, self.lm_weight)

    def encode(self, records, tokenizer, training: bool = False):
        """Returns examples and a report; see msllm.data.task_inputs.encode_sequences."""
        return encode_sequences(records, tokenizer, self.labels, self.max_length, self.kind == "similarity")


@dataclasses.dataclass
class Similarity(SequenceClassification):
    """A class for two texts whose order means nothing, such as whether they say the same."""

    kind: ClassVar[str] = "similarity"


@dataclasses.dataclass
class MultipleChoice(SequenceClassification):
    """Which of several texts goes on from a context, or answers a question about it."""

    kind: ClassVar[str] = "multiple-choice"
    figures: ClassVar[tuple[str, ...]] = ("accuracy",)

    def read(self, path: str, limit: int | None = None) -> list[Choices]:
        """Reads a file; see msllm.data.task_inputs.read_choices."""
        return read_choices(path, limit)

    def labels_of(self, records: Sequence[Choices]) -> None:
        """Returns None: the choices are each record's own."""
        return None

    def predictions(self, records, examples, outputs) -> list[dict]:
        """Returns context, choices, label, prediction and the probability of every choice."""
        lines = []
        for record, (logits,) in zip(records, outputs, strict=True):
            scores = list(map(float, softmax(logits[: len(record.choices)])))  # a row is as long as its batch's longest
            line = {"context": record.context, "choices": list(record.choices)}
            if record.label is not None:
                line["label"] = int(record.label)
            lines.append({**line, "prediction": scores.index(max(scores)), "scores": scores})
        return lines

    def metrics(self, records, predictions: Sequence[dict]) -> dict:
        """Returns the accuracy and the number of records."""
        right = sum(int(r.label) == p["prediction"] for r, p in zip(records, predictions, strict=True))
        return {"accuracy": right / len(records), "count": len(records)}


SEQUENCE_TASKS = {
    "text-classification": SequenceClassification,
    "similarity": Similarity,
    "multiple-choice": MultipleChoice,
}
