"""msllm predict: what a fine-tuned BERT or GPT says about a text, or puts in the place of [MASK]."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from msllm.errors import UserError


def predict(
    model: str,
    text: str | None = None,
    text_pair: str | None = None,
    question: str | None = None,
    context: str | None = None,
    choices: list[str] | None = None,
    file: str | None = None,
    top_k: int = 5,
    doc_stride: int | None = None,
    max_answer_length: int = 30,
    batch_size: int = 32,
    json_output: bool = False,
) -> None:
    """Predicts classes, entities, answers or masked words, a line for each text.

    Args:
        model: Hugging Face folder of a BERT for sequence or token classification, question answering or masked words,
            or of a GPT or GPT-2 that msllm finetune-task made.
        text: the text; a masked-word model fills in each [MASK] in it.
        text_pair: a second text, for a model that classifies or compares pairs.
        question: what to look up in the context.
        context: the text that holds the answer, or that the choices go on from.
        choices: of a model for multiple-choice, two texts or more.
        file: a text file, one input a line; a tab stands between the two texts of a pair, question and context, or
            context and choices.
            Without it and without a text, standard input is read in the same way.
        top_k: words for each [MASK].
        doc_stride: tokens between the beginnings of two windows of a long context, by default 128, or half of a
            window where that is less.
        max_answer_length: most tokens of an answer.
        batch_size: inputs a forward pass.
        json_output: print a JSON object for each input.
    """
    for name, value in {"top_k": top_k, "batch_size": batch_size}.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more; change it")
    from msllm.evaluation.inference import input_limit
    from msllm.evaluation.task_models import check_tokenizer
    from msllm.models.pretrained import from_pretrained, model_class, read_config
    from msllm.tokenization import load_tokenizer

    values = read_config(model)
    kind = model_class(values, f"{model}/config.json").__name__
    if kind not in _KINDS:
        raise UserError(
            f"{model} holds a {kind}, predict wants one of {', '.join(_KINDS)}; make one with msllm finetune-task"
        )
    takes, answer = _KINDS[kind]
    if values.get("msllm_task") == "multiple-choice":
        takes = _CHOICES
    parts = {"text": text, "text_pair": text_pair, "question": question, "context": context, "choices": choices}
    given = {name: value for name, value in parts.items() if value is not None}
    strange = [f"--{name}" for name in given if name not in takes.names]
    if strange:
        wanted = " and ".join(f"--{name}" for name in takes.names[: takes.least])
        raise UserError(f"{model} holds a {kind}, which takes {wanted}, not {strange[0]}; change the options")
    rows = list(_rows(given, file, takes))
    network, tokenizer = from_pretrained(model), load_tokenizer(model)
    check_tokenizer(tokenizer, network, model)
    limit = input_limit(network, tokenizer)
    options = {"top_k": top_k, "doc_stride": doc_stride, "max_answer_length": max_answer_length}
    for line, shown in answer(network, tokenizer, takes.read(rows), limit, batch_size, options):
        print(json.dumps(line, ensure_ascii=False) if json_output else shown, flush=True)


@dataclasses.dataclass(frozen=True)
class _Input:
    """What a model takes: the options that hold its texts, how many there may be, and how they become records."""

    names: tuple[str, str]
    least: int
    most: float
    read: Callable[[list], list]

    def fits(self, texts: Sequence[str]) -> bool:
        return self.least <= len(texts) <= self.most


def _rows(given: Mapping, file: str | None, takes: _Input) -> Iterator[tuple[str, list[str]]]:
    """Yields the source and the texts of each input."""
    from msllm.files import read_text

    first, second = (given.get(name) for name in takes.names)
    if given and file is not None:
        raise UserError("both a text and --file were given; give one of them")
    if given:
        lacking = next((name for name, value in zip(takes.names, (first, second)) if value is None), None)
        if first is None or (second is None and takes.least > 1):
            raise UserError(f"--{next(iter(given))} was given alone; add --{lacking}")
        more = [] if second is None else [second] if isinstance(second, str) else second
        rows = [("the command line", [first, *more])]
    else:
        name, content = (file, read_text(file)) if file is not None else ("standard input", sys.stdin.read())
        lines = enumerate(content.removesuffix("\n").split("\n"), 1)
        # A second tab of a pair belongs to its second text.
        rows = [(f"{name}, line {n}", line.removesuffix("\r").split("\t", _splits(takes))) for n, line in lines]
    for source, texts in rows:
        if not takes.fits(texts):
            if given:
                raise UserError(f"--{takes.names[1]} has {len(texts) - 1}, expected {takes.least - 1} or more; add one")
            found = "no tab" if len(texts) == 1 else f"{len(texts)} texts"
            raise UserError(
                f"{source} has {found}, expected {takes.least} or more between tabs: {' and '.join(takes.names)}"
            )
        if not all(text.strip() for text in texts):
            raise UserError(f"{source} is empty; give a text")
        yield source, texts


def _splits(takes: _Input) -> int:
    return -1 if takes.most == math.inf else int(takes.most) - 1


def _texts(rows):
    from msllm.data.tasks import LabelledText

    return [LabelledText(texts[0], texts[1] if len(texts) > 1 else None, None, source) for source, texts in rows]


def _questions(rows):
    from msllm.data.questions import Question

    return [Question(source, *texts) for source, texts in rows]


def _choices(rows):
    from msllm.data.task_inputs import Choices

    return [Choices(texts[0], tuple(texts[1:]), None, source) for source, texts in rows]


def _classify(network, tokenizer, records, limit: int, batch_size: int, options: dict):
    from msllm.evaluation.inference import classify

    for line in classify(network, tokenizer, records, limit, batch_size):
        if "choices" in line:
            yield line, f"{line['choices'][line['prediction']]}  {max(line['scores']):.4f}"
        else:
            yield line, "  ".join(f"{label} {score:.4f}" for label, score in line["scores"].items())


def _tag(network, tokenizer, texts, limit: int, batch_size: int, options: dict):
    """Words are what the tokenizer splits before it looks for pieces: at spaces, marks and Chinese characters."""
    from msllm.data.tagged import TaggedSentence, tag_scheme
    from msllm.evaluation.entities import entities
    from msllm.evaluation.inference import predictions, word_places
    from msllm.evaluation.tasks import TokenClassification

    paired = next((text.source for text in texts if text.pair is not None), None)
    if paired is not None:
        raise UserError(f"{paired} has a second text, a model that tags words takes one; remove the tab or --text_pair")
    job = TokenClassification(limit, network.config.labels)
    spans = [word_places(tokenizer, text.text) for text in texts]
    records = [
        TaggedSentence(tuple(text.text[a:b] for a, b in places), None, text.source)
        for text, places in zip(texts, spans)
    ]
    scheme = tag_scheme(job.labels)
    for text, places, line in zip(texts, spans, predictions(job, network, tokenizer, records, batch_size)):
        if scheme is None:
            shown = "  ".join(f"{word} {tag}" for word, tag in zip(line["tokens"], line["prediction"]))
            yield {"text": text.text, **line}, shown
            continue
        found = []
        for kind, first, end in entities(line["prediction"], scheme):
            begin, stop = places[first][0], places[end - 1][1]
            score = sum(line["scores"][first:end]) / (end - first)
            found.append({"type": kind, "text": text.text[begin:stop], "start": begin, "end": stop, "score": score})
        shown = "; ".join(f"{e['type']} {e['text']} {e['start']}-{e['end']} {e['score']:.4f}" for e in found)
        yield {"text": text.text, "entities": found}, shown or "no entity"


def _answer(network, tokenizer, questions, limit: int, batch_size: int, options: dict):
    from msllm.evaluation.inference import predictions
    from msllm.evaluation.tasks import QuestionAnswering

    job = QuestionAnswering(limit, options["doc_stride"], options["max_answer_length"])
    for record, line in zip(questions, predictions(job, network, tokenizer, questions, batch_size)):
        line = {"question": record.question, "context": record.context, "answer": line["prediction"], **line}
        line = {k: v for k, v in line.items() if k not in ("id", "prediction")}
        yield line, f"{line['answer']}  {line['score']:.4f}  characters {line['start']}-{line['end']}"


def _fill_masks(network, tokenizer, texts, limit: int, batch_size: int, options: dict):
    from msllm.evaluation.inference import masked_words

    for text, (_, found) in zip(texts, masked_words(network, tokenizer, texts, limit, batch_size, options["top_k"])):
        masks = [[{"token": tokenizer.id_to_token(i), "score": score} for i, score in words] for _, words in found]
        yield {"text": text.text, "masks": masks}, " | ".join(map(_show_words, masks))


def _show_words(words: Sequence[dict]) -> str:
    return "  ".join(f"{word['token']} {word['score']:.4f}" for word in words)


_TEXTS = _Input(("text", "text_pair"), 1, 2, _texts)
_QUESTIONS = _Input(("question", "context"), 2, 2, _questions)
_CHOICES = _Input(("context", "choices"), 3, math.inf, _choices)
_KINDS = {
    "BertForSequenceClassification": (_TEXTS, _classify),
    "BertForTokenClassification": (_TEXTS, _tag),
    "BertForQuestionAnswering": (_QUESTIONS, _answer),
    "BertForMaskedLM": (_TEXTS, _fill_masks),
    "BertForPreTraining": (_TEXTS, _fill_masks),
    "GPT2ForSequenceClassification": (_TEXTS, _classify),
    "OpenAIGPTForSequenceClassification": (_TEXTS, _classify),
}
