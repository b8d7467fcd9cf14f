"""msllm summarize: what a language model writes behind an article and "TL;DR:" (Radford et al. 2019, section 3.6)."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Literal

from msllm.errors import UserError
from msllm.generation.config import SummaryGenerationConfig

METRICS, PREDICTIONS = "metrics.json", "predictions.jsonl"


def summarize(
    model: str,
    generation: SummaryGenerationConfig,
    text: str | None = None,
    file: str | None = None,
    data: str | None = None,
    output: str | None = None,
    sentences: int | None = None,
    language: Literal["auto", "en", "zh"] = "auto",
    min_score: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    json_output: bool = False,
) -> None:
    """Summarises articles, or measures a model's summaries of a test set by ROUGE.

    Args:
        model: Hugging Face folder, or adapter folder, of a GPT-2 or another model that continues text.
        generation: options of generation; the paper's are --do_sample --top_k 2 with --sentences 3.
        text: an article; without it, file and data, standard input is read, an article a line.
        file: articles, one a line; of each, the summary is printed as one line.
        data: file or hub name of articles with their summaries (article and summary, NLPCC 2017, CNN/Daily Mail,
            LCSTS) to compare with; prints ROUGE of the model and of the articles' first three sentences.
        output: with data, a folder that gets metrics.json and predictions.jsonl; those of an earlier run are replaced.
        sentences: keep only the first sentences of what the model writes.
        language: how ROUGE counts: en stems of words, zh Chinese characters, auto goes by the summaries in data.
        min_score: with data of LCSTS, use only summaries whose human_label is at least so much; the paper's 3.
        batch_size: articles at a time.
        limit: use only the first articles.
        json_output: print JSON: an object for each article, or with data the figures.
    """
    _check(
        {"--text": text, "--file": file, "--data": data},
        {"--output": output, "--min_score": min_score, "--language": None if language == "auto" else language},
    )
    for name, value in {"batch_size": batch_size, "limit": limit, "sentences": sentences}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more; change it")
    from msllm.data.loading import load_summaries
    from msllm.evaluation.summarization import write_summaries
    from msllm.models.causal_lm import require_causal
    from msllm.tuning.loading import open_checkpoint

    records = load_summaries(data, limit, min_score, split="test") if data is not None else None
    articles = _articles(text, file)[:limit] if records is None else [record.article for record in records]
    network, tokenizer = open_checkpoint(model)
    require_causal(network, model)
    progress = _Progress(len(articles)) if records is not None or len(articles) > batch_size else None
    summaries = write_summaries(network, tokenizer, articles, generation, sentences, batch_size, progress)
    cut = sum(summary.cut for summary in summaries)
    if cut:
        print(f"{cut} of {len(articles)} articles are too long for the model and lost their end", file=sys.stderr)
    if records is not None:
        settings = {**dataclasses.asdict(generation), "sentences": sentences}
        _measure(model, records, summaries, settings, language, output, json_output)
        return
    for article, summary in zip(articles, summaries, strict=True):
        line = {"article": article, "summary": summary.text}
        line |= {"new_tokens": summary.new_tokens, "finish_reason": summary.finish_reason}
        print(json.dumps(line, ensure_ascii=False) if json_output else " ".join(summary.text.split()))


def _check(sources: dict, of_data: dict) -> None:
    names = [name for name, value in sources.items() if value is not None]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} were given; give one of them")
    idle = next((name for name, value in of_data.items() if value is not None), None)
    if idle is not None and "--data" not in names:
        raise UserError(f"{idle} was given without --data, which it is for; add --data FILE, or leave it out")
    output = of_data["--output"]
    if output is not None and Path(output).is_file():
        raise UserError(f"output {output} is a file, expected a folder; choose another name")


def _articles(text: str | None, file: str | None) -> list[str]:
    from msllm.data.parallel_text import read_lines, split_lines
    from msllm.files import decode_text

    if text is not None:
        source, articles = "--text", [text]
    elif file is not None:
        source, articles = file, read_lines(file)
    else:
        source, articles = "standard input", split_lines(decode_text(sys.stdin.buffer.read(), "standard input"))
    if not any(article.strip() for article in articles):
        raise UserError(f"{source} is empty; give an article, or one a line")
    return articles


class _Progress:
    """A bar on a terminal; elsewhere a line a tenth of the work."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="article", disable=None, dynamic_ncols=True)
        self.total, self.shown, self.start = total, 0, time.perf_counter()

    def __call__(self, done: int) -> None:
        self.bar.update(done - self.bar.n)
        tenths = 10 * done // max(self.total, 1)
        if self.bar.disable and tenths > self.shown:
            rate = done / (time.perf_counter() - self.start)
            left = (self.total - done) / rate
            print(
                f"{done}/{self.total} articles  {rate:.2f} articles/s  {left:.0f} s left", file=sys.stderr, flush=True
            )
            self.shown = tenths
        if done == self.total:
            self.bar.close()


def _measure(model: str, records, summaries, settings: dict, language: str, output: str | None, json_output) -> None:
    """Prints ROUGE of the summaries and of the first three sentences, and writes both where ``output`` says so."""
    from msllm.data.summaries import in_chinese
    from msllm.evaluation.rouge import lead_3, rouge
    from msllm.files import atomic_files, write_json

    references = [record.completion.strip() for record in records]
    predictions, leads = [summary.text for summary in summaries], [lead_3(record.article) for record in records]
    chinese = 2 * sum(map(in_chinese, references)) > len(references) if language == "auto" else language == "zh"
    figures = {
        "model": rouge(references, predictions, chinese),
        "lead_3": rouge(references, leads, chinese),
        "count": len(records),
        "scored_as": "zh" if chinese else "en",
        "cut_articles": sum(summary.cut for summary in summaries),
        "folder": model,
        "generation": settings,
    }
    if output is not None:
        with atomic_files(output) as tmp:
            write_json(tmp / METRICS, figures)
            with (tmp / PREDICTIONS).open("w", encoding="utf-8") as lines:
                for record, reference, prediction, lead in zip(records, references, predictions, leads, strict=True):
                    line = {"article": record.article, "summary": reference, "prediction": prediction, "lead_3": lead}
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    if json_output:
        print(json.dumps(figures, ensure_ascii=False))
        return
    print(f"{'':8}ROUGE-1  ROUGE-2  ROUGE-L")
    for name in ("model", "lead_3"):
        print(f"{name.replace('_', '-'):8}" + "  ".join(f"{value:7.4f}" for value in figures[name].values()))
