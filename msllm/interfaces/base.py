"""What all pipelines share: options, one input or a list of them."""

from pathlib import Path
from typing import Any, ClassVar

from mindspore import nn

from msllm.errors import UserError, nearest
from msllm.tokenization import Tokenizer, load_tokenizer


class Pipeline:
    """A model with its tokenizer, called with an input or a list of inputs.

    Args:
        task: its name, for messages.
        model: a folder or a model.
        tokenizer: a Tokenizer, a folder, or None: the model's folder.
        options: of every call.

    Class attributes:
        options: names and defaults of what a call may ask for.
        wraps: whether the result of one input comes in a list of one.
    """

    options: ClassVar[dict[str, Any]] = {"batch_size": 8}
    wraps: ClassVar[bool] = False

    def __init__(self, task: str, model: str | Path | nn.Cell, tokenizer: Tokenizer | str | Path | None, options: dict):
        self.task, self.given = task, options
        self._merged({})
        self.name = type(model).__name__ if isinstance(model, nn.Cell) else str(model)
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(tokenizer)
        if isinstance(model, nn.Cell):
            if tokenizer is None:
                raise UserError(f"tokenizer is missing, and the model is a {self.name}, no folder; give both")
            self.model, self.tokenizer = model.set_train(False), tokenizer
        else:
            self.model, own = self.open(model)
            self.tokenizer = tokenizer or own or load_tokenizer(model)
        self.check()

    def open(self, folder: str | Path) -> tuple[nn.Cell, Tokenizer | None]:
        """Returns the model of a folder, and its tokenizer where it has been opened with it."""
        raise TypeError(f"{type(self).__name__} does not say how it opens a folder")

    def check(self) -> None:
        """Raises UserError where model and tokenizer are not for this task, or not for each other."""

    def __call__(self, inputs, **options):
        """Returns the result of an input, or a list of results of a list; see pipeline.

        Args:
            inputs: an input, or a list of them.
            options: of this call.
        """
        options = self._merged(options)
        if self.is_one(inputs):
            result = self.run([inputs], options)[0]
            return [result] if self.wraps and isinstance(result, dict) else result
        inputs = list(inputs)
        return self.run(inputs, options) if inputs else []

    def is_one(self, inputs) -> bool:
        """Whether this is one input, not a list of them."""
        return isinstance(inputs, str | dict)

    def run(self, inputs: list, options: dict) -> list:
        """Returns the result of each input."""
        raise TypeError(f"{type(self).__name__} does not say what it does")

    def texts(self, inputs: list) -> list[str]:
        """Returns the inputs; UserError for one that is no text."""
        for number, value in enumerate(inputs, 1):
            if not isinstance(value, str):
                raise UserError(f"input {number} is {_show(value)}, {self.task} takes a text, or a list of texts")
        return inputs

    def _merged(self, options: dict) -> dict:
        strange = next((name for name in {**self.given, **options} if name not in self.options), None)
        if strange is not None:
            raise UserError(
                f"{self.task} has no option {strange}{nearest(strange, self.options)}; known are "
                f"{', '.join(self.options)}"
            )
        merged = {**self.options, **self.given, **options}
        if not isinstance(merged["batch_size"], int) or merged["batch_size"] < 1:
            raise UserError(f"batch_size is {merged['batch_size']!r}, expected 1 or more; change it")
        return merged


def _show(value) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
