"""Pipelines that write texts: continuations, translations, summaries."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from msllm.errors import UserError
from msllm.evaluation.summarization import write_summaries
from msllm.generation.config import GenerationConfig, SummaryGenerationConfig, saved_options
from msllm.generation.text import generate_text
from msllm.generation.translate import translate
from msllm.interfaces.base import Pipeline
from msllm.models.causal_lm import require_causal
from msllm.models.pretrained import check_vocabulary
from msllm.tuning.loading import open_checkpoint

_GENERATION = dict.fromkeys(field.name for field in dataclasses.fields(GenerationConfig))


class Writer(Pipeline):
    """What all of them share; ``config_class`` has the options of generation, None stands for its defaults."""

    config_class = GenerationConfig
    options: ClassVar[dict[str, Any]] = {**Pipeline.options, **_GENERATION}
    wraps = True

    def open(self, folder):
        if (Path(folder) / "generation_config.json").is_file():
            self.given = saved_options(folder) | self.given
        return open_checkpoint(folder)

    def check(self):
        check_vocabulary(self.tokenizer, self.model, self.name)

    def config(self, options: dict) -> GenerationConfig:
        """Returns the options of generation."""
        chosen = {name: options[name] for name in _GENERATION if options[name] is not None}
        return self.config_class(**chosen)


class TextGeneration(Writer):
    """Continues prompts and chats. Options are GenerationConfig's, and

    return_full_text: the prompt, or the chat, is a part of the result.
    return_tensors: {"generated_token_ids"}, prompt and answer, in place of the text.
    """

    options: ClassVar[dict[str, Any]] = {**Writer.options, "return_full_text": True, "return_tensors": False}
    wraps = False

    def check(self):
        require_causal(self.model, self.name)
        super().check()

    def is_one(self, inputs):
        return isinstance(inputs, str) or (bool(inputs) and isinstance(inputs[0], dict))

    def run(self, inputs, options):
        results, size, config = [], options["batch_size"], self.config(options)
        for start in range(0, len(inputs), size):
            group = inputs[start : start + size]
            chats = [not isinstance(value, str) for value in group]
            if any(chats) != all(chats):
                raise UserError("some inputs are chats and some are texts; call text-generation for each kind")
            texts = [self._layout(value) for value in group] if chats[0] else group
            found = generate_text(self.model, self.tokenizer, texts, config, add_special_tokens=not chats[0])
            results += [[self._result(*one, options)] for one in zip(group, texts, found)]
        return results

    def _layout(self, chat) -> str:
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)

    def _result(self, given, text: str, found: tuple, options: dict) -> dict:
        answer, generated = found
        if options["return_tensors"]:
            prompt = self.tokenizer.encode(text, add_special_tokens=isinstance(given, str))
            return {"generated_token_ids": [*prompt, *generated.ids]}
        if not options["return_full_text"]:
            return {"generated_text": answer}
        if isinstance(given, str):
            return {"generated_text": given + answer}
        return {"generated_text": [*given, {"role": "assistant", "content": answer}]}


class Translation(Writer):
    """Translates sentences; options are GenerationConfig's."""

    def check(self):
        if not hasattr(self.model, "encode"):
            raise UserError(
                f"{self.name} holds a {type(self.model).__name__}, which does not translate; give the folder of a "
                f"train-translator run"
            )
        super().check()

    def run(self, inputs, options):
        found = translate(self.model, self.tokenizer, self.texts(inputs), self.config(options), options["batch_size"])
        return [{"translation_text": text} for text in found]


class Summarization(Writer):
    """Writes what a language model says behind an article and "TL;DR:". Options are GenerationConfig's, and

    sentences: keep only the first ones; None keeps all.
    """

    config_class = SummaryGenerationConfig
    options: ClassVar[dict[str, Any]] = {**Writer.options, "sentences": None}

    def check(self):
        require_causal(self.model, self.name)
        super().check()

    def run(self, inputs, options):
        found = write_summaries(
            self.model,
            self.tokenizer,
            self.texts(inputs),
            self.config(options),
            options["sentences"],
            options["batch_size"],
        )
        return [{"summary_text": summary.text} for summary in found]
