"""msllm predict: what a fine-tuned BERT says about a text, or puts in the place of [MASK]."""

import json
import sys
from collections.abc import Iterator, Sequence

from msllm.errors import UserError


def predict(
    model: str,
    text: str | None = None,
    text_pair: str | None = None,
    question: str | None = None,
    context: str | None = None,
    file: str | None = None,
    top_k: int = 5,
    doc_stride: int | None = None,
    max_answer_length: int = 30,
    batch_size: int = 32,
    json_output: bool = False,
) -> None:
    """Predicts classes, entities, answers or masked words, a line for each text.

    Args:
        model: Hugging Face folder of a BERT for sequence or token classification, question answering or masked words.
        text: the text; a masked-word model fills in each [MASK] in it.
        text_pair: a second text, for a model that classifies pairs.
        question: what to look up in the context.
        context: the text that holds the answer.
        file: a text file, one input a line; a tab stands between the two texts of a pair, or question and context.
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
    from msllm.commands.tasks import check_tokenizer
    from msllm.models.pretrained import from_pretrained, model_class, read_config
    from msllm.tokenization import load_tokenizer

    kind = model_class(read_config(model), f"{model}/config.json").__name__
    if kind not in _KINDS:
        raise UserError(
            f"{model} holds a {kind}, predict wants one of {', '.join(_KINDS)}; make one with msllm finetune-task"
        )
    reader, answer = _KINDS[kind]
    two = reader == _questions
    given = ((question, context), (text, text_pair)) if two else ((text, text_pair), (question, context))
    if any(value is not None for value in given[1]):
        names = ("--question and --context", "--text") if two else ("--text", "--question and --context")
        raise UserError(f"{model} holds a {kind}, which takes {names[0]}, not {names[1]}; change the options")
    rows = list(_rows(*given[0], file, two))
    network, tokenizer = from_pretrained(model), load_tokenizer(model)
    check_tokenizer(tokenizer, network, model)
    limit = min(network.config.max_position_embeddings, int(tokenizer.config.get("model_max_length") or 10**9))
    options = {"top_k": top_k, "doc_stride": doc_stride, "max_answer_length": max_answer_length}
    for line, shown in answer(network, tokenizer, reader(rows), limit, batch_size, options):
        print(json.dumps(line, ensure_ascii=False) if json_output else shown, flush=True)


def _rows(first: str | None, second: str | None, file: str | None, two: bool) -> Iterator[tuple]:
    """Yields (source, text, second text or None) of each input."""
    from msllm.files import read_text

    if first is not None and file is not None:
        raise UserError("both a text and --file were given; give one of them")
    if first is None and second is not None:
        raise UserError(
            f"{'--context' if two else '--text_pair'} was given alone; add {'--question' if two else '--text'}"
        )
    if first is not None:
        if two and second is None:
            raise UserError("--question was given alone; add --context")
        rows = [("the command line", first, second)]
    else:
        name, content = (file, read_text(file)) if file is not None else ("standard input", sys.stdin.read())
        rows = []
        for n, line in enumerate(content.removesuffix("\n").split("\n"), 1):
            text, tab, rest = line.removesuffix("\r").partition("\t")
            if two and not tab:
                raise UserError(f"{name}, line {n} has no tab; expected question, tab and context; mend that line")
            rows.append((f"{name}, line {n}", text, rest if tab else None))
    for source, text, other in rows:
        if not text.strip() or (other is not None and not other.strip()):
            raise UserError(f"{source} is empty; give a text")
        yield source, text, other


def _texts(rows):
    from msllm.data.tasks import LabelledText

    return [LabelledText(text, other, None, source) for source, text, other in rows]


def _questions(rows):
    from msllm.data.questions import Question

    return [Question(source, text, other) for source, text, other in rows]


def _predictions(job, network, tokenizer, records, batch_size: int) -> list[dict]:
    from msllm.data.questions import MAX_QUERY_LENGTH
    from msllm.evaluation.tasks import evaluate

    examples, report = job.encode(records, tokenizer)
    if getattr(report, "truncated", 0):
        print(f"{report.truncated} inputs are longer than {job.max_length} tokens and were cut", file=sys.stderr)
    if getattr(report, "cut_questions", 0):
        print(
            f"{report.cut_questions} questions are longer than {MAX_QUERY_LENGTH} tokens and were cut", file=sys.stderr
        )
    return evaluate(job, network, records, examples, tokenizer.pad_token_id, batch_size)[0]


def _classify(network, tokenizer, texts, limit: int, batch_size: int, options: dict):
    from msllm.evaluation.tasks import TextClassification

    job = TextClassification(limit, network.config.labels)
    for line in _predictions(job, network, tokenizer, texts, batch_size):
        yield line, "  ".join(f"{label} {score:.4f}" for label, score in line["scores"].items())


def _tag(network, tokenizer, texts, limit: int, batch_size: int, options: dict):
    """Words are what the tokenizer splits before it looks for pieces: at spaces, marks and Chinese characters."""
    from msllm.data.tasks import TaggedSentence, tag_scheme
    from msllm.evaluation.entities import entities
    from msllm.evaluation.tasks import TokenClassification

    paired = next((text.source for text in texts if text.pair is not None), None)
    if paired is not None:
        raise UserError(f"{paired} has a second text, a model that tags words takes one; remove the tab or --text_pair")
    job = TokenClassification(limit, network.config.labels)
    spans = [_words(tokenizer, text.text) for text in texts]
    records = [
        TaggedSentence(tuple(text.text[a:b] for a, b in places), None, text.source)
        for text, places in zip(texts, spans)
    ]
    scheme = tag_scheme(job.labels)
    for text, places, line in zip(texts, spans, _predictions(job, network, tokenizer, records, batch_size)):
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


def _words(tokenizer, text: str) -> list[tuple[int, int]]:
    """Returns first character and end of each word of a text."""
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    places: dict[int, tuple[int, int]] = {}
    for word, (begin, end) in zip(encoded.word_ids, encoded.offsets):
        places[word] = (min(begin, places.get(word, (begin,))[0]), end)
    return list(places.values())


def _answer(network, tokenizer, questions, limit: int, batch_size: int, options: dict):
    from msllm.evaluation.tasks import QuestionAnswering

    job = QuestionAnswering(limit, options["doc_stride"], options["max_answer_length"])
    for record, line in zip(questions, _predictions(job, network, tokenizer, questions, batch_size)):
        line = {"question": record.question, "context": record.context, "answer": line["prediction"], **line}
        line = {k: v for k, v in line.items() if k not in ("id", "prediction")}
        yield line, f"{line['answer']}  {line['score']:.4f}  characters {line['start']}-{line['end']}"


def _fill_masks(network, tokenizer, texts, limit: int, batch_size: int, options: dict):
    from msllm.evaluation.predictions import predict_batches
    from msllm.generation.sampling import softmax
    from msllm.training.task_objectives import TOKEN_CLASSIFICATION

    examples = []
    for text in texts:
        ids, types = tokenizer.encode_pair(text.text, text.pair)
        if len(ids) > limit:
            raise UserError(f"{text.source} has {len(ids)} tokens, the model takes {limit}; give a shorter text")
        if tokenizer.mask_token_id not in ids:
            raise UserError(f"{text.source} has no {tokenizer.mask_token or '[MASK]'}, and nothing to fill in; add one")
        examples.append({"input_ids": ids, "token_type_ids": types, "labels": []})
    outputs = predict_batches(network, examples, TOKEN_CLASSIFICATION, tokenizer.pad_token_id, batch_size)
    for text, example, output in zip(texts, examples, outputs):
        masks = []
        for place in [i for i, token in enumerate(example["input_ids"]) if token == tokenizer.mask_token_id]:
            scores = softmax(output[0][place])
            best = scores.argsort()[::-1][: options["top_k"]]
            masks.append([{"token": tokenizer.id_to_token(i), "score": float(scores[i])} for i in best])
        yield {"text": text.text, "masks": masks}, " | ".join(map(_show_words, masks))


def _show_words(words: Sequence[dict]) -> str:
    return "  ".join(f"{word['token']} {word['score']:.4f}" for word in words)


_KINDS = {
    "BertForSequenceClassification": (_texts, _classify),
    "BertForTokenClassification": (_texts, _tag),
    "BertForQuestionAnswering": (_questions, _answer),
    "BertForMaskedLM": (_texts, _fill_masks),
    "BertForPreTraining": (_texts, _fill_masks),
}
