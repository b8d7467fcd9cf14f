"""Sentences in, translations out."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from msllm.errors import UserError
from msllm.generation.config import GenerationConfig
from msllm.generation.generate import generate_ids
from msllm.layers import record_attention


def translate(model, tokenizer, sentences: Sequence[str], config: GenerationConfig, batch_size: int = 32) -> list[str]:
    """Translates sentences, those of like length together.

    Args:
        model: a TransformerForTranslation in inference mode.
        tokenizer: the model's.
        sentences: none longer than the model's positions; empty ones come out empty.
        config: num_beams, length_penalty and the rest.
        batch_size: sentences at a time; a translation does not depend on it.

    Raises:
        UserError: a sentence that is too long, named by its number and beginning; a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, expected 1 or more; change it")
    eos = [tokenizer.eos_token_id]
    sources = [tokenizer.encode(s, add_special_tokens=False) + eos for s in sentences]
    for n, (sentence, ids) in enumerate(zip(sentences, sources, strict=True), 1):
        if len(ids) > model.max_length:
            raise UserError(
                f"sentence {n} ({sentence[:40]!r}...) has {len(ids)} tokens, the model takes {model.max_length}; "
                f"split it"
            )
    results = [""] * len(sources)
    order = [int(i) for i in np.argsort([-len(s) for s in sources], kind="stable") if sentences[i].strip()]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        found = generate_ids(model, [sources[i] for i in rows], config, tokenizer)
        for i, result in zip(rows, found, strict=True):
            results[i] = tokenizer.decode(result.ids).strip()
    return results


def cross_attention(model, tokenizer, source: str, translation: str) -> tuple[list[str], list[str], np.ndarray]:
    """Returns where the decoder looks in the source while it writes a translation.

    Returns:
        Source tokens (S), target tokens (T), and weights (layers, heads, T, S): row t is the attention of the step
        that writes target token t.
    """
    eos = [tokenizer.eos_token_id]
    ids, target = ([*tokenizer.encode(text, add_special_tokens=False), *eos] for text in (source, translation))
    with record_attention() as recorded:
        model(
            Tensor(np.array([ids], np.int32)),
            None,
            Tensor(np.array([[model.config.decoder_start_token_id, *target[:-1]]], np.int32)),
        )
    # Of each decoder layer, attention to itself is recorded first, then that to the source.
    maps = recorded[model.config.encoder_layers :][1::2]
    tokens = [[tokenizer.decode([i], skip_special_tokens=False) for i in row] for row in (ids, target)]
    return tokens[0], tokens[1], np.concatenate(maps)
