"""The options of generation; they carry transformers' names."""

import dataclasses
from pathlib import Path

from msllm.errors import UserError
from msllm.files import read_json


@dataclasses.dataclass(kw_only=True)
class GenerationConfig:
    """Options of generation.

    Args:
        max_new_tokens: most tokens that are generated; fewer where the context ends.
        do_sample: draw from the distribution; otherwise take the most likely token.
        temperature: logits are divided by it before drawing; below 1 sharper, above 1 flatter.
        top_k: draw from the k most likely tokens; 0 turns it off.
        top_p: draw from the smallest set of most likely tokens whose probability reaches p.
        min_p: leave out tokens less likely than min_p times the most likely one.
        repetition_penalty: above 1, tokens that occurred become less likely (Keskar et al. 2019, section 4.1).
        num_beams: beams of beam search; 1 is no beam search.
        length_penalty: beam scores are divided by length ** length_penalty.
        early_stopping: beam search ends as soon as num_beams candidates are finished.
        stop: texts that end an answer; they are cut off.
        seed: seed of the draws.
        eos_token_id: tokens that end an answer; default those of the tokenizer and the model.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    stop: list[str] = dataclasses.field(default_factory=list)
    seed: int = 0
    eos_token_id: list[int] | None = None

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more; change it")
        if self.temperature <= 0:
            raise UserError(
                f"temperature is {self.temperature}, expected above 0; for the most likely token leave do_sample off"
            )
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}, expected 0 (off) or more; change it")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, expected above 0 and at most 1; change it")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}, expected 0 to 1; change it")
        if self.repetition_penalty <= 0:
            raise UserError(f"repetition_penalty is {self.repetition_penalty}, expected above 0; change it")
        if self.num_beams < 1:
            raise UserError(f"num_beams is {self.num_beams}, expected 1 or more; change it")
        if self.num_beams > 1 and self.do_sample:
            raise UserError(
                f"num_beams is {self.num_beams} and do_sample on: beam search does not draw; turn one of them off"
            )


@dataclasses.dataclass(kw_only=True)
class SummaryGenerationConfig(GenerationConfig):
    __doc__ = GenerationConfig.__doc__  # the options' help; the length is that of the paper

    max_new_tokens: int = 100


def end_tokens(model, tokenizer=None) -> list[int]:
    """Returns the ids that end an answer: those of the tokenizer and of the model's config.json."""
    value = model.config.eos_token_id
    ids = [value] if isinstance(value, int) else list(value or [])
    if tokenizer is not None:
        ids += tokenizer.eos_token_ids
    return list(dict.fromkeys(ids))


def saved_options(folder: str | Path) -> dict:
    """Returns the options that a checkpoint's generation_config.json sets, where there is one.

    Its end tokens are left to the tokenizer, which knows them and the one that ends a turn of the chat template.
    """
    path = Path(folder) / "generation_config.json"
    if not path.is_file():
        return {}
    names = {f.name for f in dataclasses.fields(GenerationConfig)} - {"eos_token_id"}
    return {k: v for k, v in read_json(path).items() if k in names and v is not None}
