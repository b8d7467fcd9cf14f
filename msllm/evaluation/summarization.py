"""What a language model writes behind an article and "TL;DR:" (Radford et al. 2019, section 3.6)."""

import dataclasses
from collections.abc import Sequence

from msllm.data.summaries import prompt_ids
from msllm.errors import UserError
from msllm.evaluation.rouge import first_sentences
from msllm.generation import GenerationConfig, generate_ids
from msllm.generation.text import TextStream


@dataclasses.dataclass(frozen=True)
class Summary:
    """The summary of one article.

    Attributes:
        new_tokens: tokens that were generated for it.
        finish_reason: why they end: "eos", "stop" or "length"; None where the article is empty.
        cut: whether the article was too long for the model and lost its end.
    """

    text: str
    new_tokens: int = 0
    finish_reason: str | None = None
    cut: bool = False


def write_summaries(
    network,
    tokenizer,
    articles: Sequence[str],
    config: GenerationConfig,
    sentences: int | None = None,
    batch_size: int = 8,
    progress=None,
) -> list[Summary]:
    """Returns what a language model writes behind each article and "TL;DR:", those of like length together.

    Args:
        network: a CausalLM in inference mode.
        tokenizer: the model's.
        articles: one that does not leave room for ``max_new_tokens`` loses its end; an empty one has an empty summary.
        config: options of generation; a summary ends at the eos, at a text of ``stop`` or after ``max_new_tokens``.
        sentences: sentences to keep; None keeps all.
        batch_size: articles at a time; with do_sample off, a summary does not depend on it.
        progress: called with the number of articles that are done, after each batch.

    Raises:
        UserError: max_new_tokens leaves no room for an article.
    """
    results = [Summary("") for _ in articles]
    prompts, cut = _prompts(network, tokenizer, articles, config.max_new_tokens)
    order = sorted(prompts, key=lambda i: -len(prompts[i]))
    done = len(articles) - len(order)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        streams = [TextStream(tokenizer, config.stop) for _ in rows]

        def on_token(row: int, token_id: int, streams=streams) -> bool:
            streams[row].push(token_id)
            return streams[row].stopped

        found = generate_ids(network, [prompts[i] for i in rows], config, tokenizer, on_token if config.stop else None)
        for i, result in zip(rows, found, strict=True):
            whole = text = tokenizer.decode(result.ids)
            for stop in filter(None, config.stop):
                text = text.partition(stop)[0]
            reason = "stop" if text != whole else result.finish_reason
            text = text.strip() if sentences is None else first_sentences(text, sentences)
            results[i] = Summary(text, len(result.ids), reason, i in cut)
        done += len(rows)
        if progress is not None:
            progress(done)
    return results


def _prompts(network, tokenizer, articles: Sequence[str], new: int) -> tuple[dict[int, list[int]], set[int]]:
    """Returns the prompts of the articles that are not empty, by number, and the numbers of those that were cut."""
    room = None if network.max_length is None else network.max_length - new
    if room is not None and room < 1:
        raise UserError(
            f"max_new_tokens is {new}, the model's context is {network.max_length} with the article; lower it"
        )
    prompts, cut = {}, set()
    for i, article in enumerate(articles):
        if article.strip():
            prompts[i] = prompt_ids(article, tokenizer)
            if room is not None and len(prompts[i]) > room:
                prompts[i] = prompt_ids(article, tokenizer, room)
                cut.add(i)
    return prompts, cut
