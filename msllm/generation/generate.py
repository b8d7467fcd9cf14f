"""Token by token: greedy decoding and sampling over a key-value cache, for a batch of prompts."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor

from msllm.data import collate
from msllm.errors import UserError
from msllm.generation.beam import beam_search
from msllm.generation.config import GenerationConfig, end_tokens
from msllm.generation.sampling import draw, processors

LONGER_THAN_SOURCE = 50


@dataclasses.dataclass
class Generated:
    """What came out of one prompt: the new ids and why they end: "eos", "stop" or "length"."""

    ids: list[int]
    finish_reason: str = "length"


class Decoder:
    """A batch of rows on their way: left-padded prompts, then one new token a row and step.

    Attributes:
        contexts: the ids before each answer, which a repetition penalty counts.
        limits: the most tokens that can follow, for each prompt; steps: the largest of them.
        logits: (B, V) of the next token.

    Args:
        model: a CausalLM in inference mode.
        prompts: token ids, one list a row, none empty.
        max_new_tokens: fewer where the model's context ends.
        copies: rows for each prompt (beams), one after the other.

    Raises:
        UserError: a prompt that is empty or fills the context, or ids outside the vocabulary.
    """

    def __init__(self, model, prompts: Sequence[Sequence[int]], max_new_tokens: int, copies: int = 1):
        check_prompts(model, prompts)
        self.model, self.contexts, longest = model, prompts, max(len(p) for p in prompts)
        room = max_new_tokens if model.max_length is None else model.max_length - longest
        self.steps = min(max_new_tokens, room)
        self.limits = [self.steps] * len(prompts)
        rows = [p for p in prompts for _ in range(copies)]
        ids, self.mask = np.zeros((2, len(rows), longest), np.int32)
        for ids_row, mask_row, prompt in zip(ids, self.mask, rows):
            ids_row[longest - len(prompt) :] = prompt
            mask_row[longest - len(prompt) :] = 1
        self.padded = not self.mask.all()
        self.cache = model.make_cache(len(rows), longest + self.steps)
        self.logits = self._run(ids, np.maximum(self.mask.cumsum(1) - 1, 0))

    def push(self, tokens: Sequence[int]) -> None:
        """Appends one token a row; ``logits`` (B, V) are then those of the next one."""
        self.mask = np.pad(self.mask, ((0, 0), (0, 1)), constant_values=1)
        self.logits = self._run(np.array(tokens, np.int32)[:, None], self.mask.sum(1, keepdims=True) - 1)

    def _run(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        padding = (Tensor(self.mask), Tensor(positions.astype(np.int32))) if self.padded else (None, None)
        return self.model.next_logits(Tensor(ids), *padding, self.cache).asnumpy()


class TranslationDecoder:
    """The same for an encoder-decoder model: the prompts are source sentences, the answers start from nothing.

    No answer gets longer than 50 tokens more than its source (Vaswani et al. 2017, section 6.1): one that does turns in
    circles.
    """

    def __init__(self, model, prompts: Sequence[Sequence[int]], max_new_tokens: int, copies: int = 1):
        check_prompts(model, prompts)
        self.model, self.contexts = model, [[] for _ in prompts]
        self.limits = [min(max_new_tokens, model.max_length, len(p) + LONGER_THAN_SOURCE) for p in prompts]
        self.steps = max(self.limits)
        rows = [{"input_ids": p} for p in prompts for _ in range(copies)]
        batch = {key: Tensor(value) for key, value in collate(rows).items()}
        self.cache = model.make_cache(batch["input_ids"], batch["attention_mask"], self.steps)
        self.push([model.config.decoder_start_token_id] * len(rows))

    def push(self, tokens: Sequence[int]) -> None:
        """Appends one token a row; ``logits`` (B, V) are then those of the next one."""
        self.logits = self.model.next_logits(Tensor(np.array(tokens, np.int32)[:, None]), self.cache).asnumpy()


def start_decoder(model, prompts: Sequence[Sequence[int]], max_new_tokens: int, copies: int = 1):
    """Returns the decoder that suits the model; arguments as for Decoder."""
    kind = TranslationDecoder if hasattr(model, "encode") else Decoder
    return kind(model, prompts, max_new_tokens, copies)


def generate_ids(
    model,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    tokenizer=None,
    on_token: Callable[[int, int], bool] | None = None,
) -> list[Generated]:
    """Continues every prompt.

    Args:
        model: a CausalLM in inference mode, or a TransformerForTranslation.
        prompts: token ids, one list a row; rows may differ in length.
        config: the options; its seed and the row's number fix the draws.
        tokenizer: gives the ids that end an answer, and the texts for ``stop``.
        on_token: called as on_token(row, id) for each new token; True ends that row.

    Returns:
        One Generated a prompt; an ending eos is the last id.

    Raises:
        UserError: see Decoder; ``stop`` without a tokenizer.
    """
    ends = set(end_tokens(model, tokenizer) if config.eos_token_id is None else config.eos_token_id)
    if config.stop and tokenizer is None and on_token is None:
        raise UserError(f"stop {config.stop!r} needs a tokenizer; pass the one of the checkpoint")
    if config.num_beams > 1:
        decoder = start_decoder(model, prompts, config.max_new_tokens, config.num_beams)
        found = beam_search(decoder, config, sorted(ends))
        return [Generated(ids, "eos" if ids and ids[-1] in ends else "length") for ids in found]
    decoder = start_decoder(model, prompts, config.max_new_tokens)
    chain = processors(config)
    draws = [np.random.Generator(np.random.PCG64((config.seed, row))) for row in range(len(prompts))]
    results, running = [Generated([]) for _ in prompts], set(range(len(prompts)))
    for step in range(decoder.steps):
        tokens = [0] * len(prompts)
        for row in sorted(running):
            logits = decoder.logits[row]
            for process in chain:
                logits = process(logits, [*decoder.contexts[row], *results[row].ids])
            tokens[row] = draw(logits, draws[row]) if config.do_sample else int(logits.argmax())
            results[row].ids.append(tokens[row])
            stopped = on_token is not None and on_token(row, tokens[row])
            if tokens[row] in ends or stopped:
                results[row].finish_reason = "eos" if tokens[row] in ends else "stop"
            if tokens[row] in ends or stopped or len(results[row].ids) == decoder.limits[row]:
                running.discard(row)
        if not running or step + 1 == decoder.steps:
            break
        decoder.push(tokens)
    return results


def check_prompts(model, prompts: Sequence[Sequence[int]]) -> None:
    """Raises UserError for a prompt that the model cannot continue."""
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {row + 1} is empty; give at least one token")
        if model.max_length is not None and len(prompt) >= model.max_length + hasattr(model, "encode"):
            raise UserError(
                f"prompt {row + 1} has {len(prompt)} tokens, the model's context is {model.max_length} "
                f"with the answer; shorten the prompt"
            )
        if max(prompt) >= model.config.vocab_size or min(prompt) < 0:
            raise UserError(
                f"prompt {row + 1} holds token id {max(prompt)}, the model knows 0 to "
                f"{model.config.vocab_size - 1}; use the tokenizer of this checkpoint"
            )
