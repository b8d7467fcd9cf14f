"""Records to ids and labels: what the model sees, and which tokens it is trained on."""

from collections.abc import Iterable
from dataclasses import dataclass

from msllm.data.formats import Record
from msllm.data.summaries import TL_DR, prompt_ids, summary_text
from msllm.errors import UserError
from msllm.tokenization import Tokenizer

IGNORED = -100
Example = dict[str, list[int]]


@dataclass
class EncodingReport:
    """What became of the records: counts of records, examples and tokens.

    Attributes:
        truncated: examples cut to ``max_length``.
        dropped: records left without a token to train on: empty answers, or none within ``max_length``.
    """

    records: int = 0
    examples: int = 0
    truncated: int = 0
    dropped: int = 0
    tokens: int = 0
    trained_tokens: int = 0

    def __str__(self) -> str:
        return (
            f"{self.records} records -> {self.examples} examples, {self.tokens} tokens of which "
            f"{self.trained_tokens} trained; {self.truncated} truncated, {self.dropped} dropped"
        )


def encode_records(
    records: Iterable[Record], tokenizer: Tokenizer, max_length: int
) -> tuple[list[Example], EncodingReport]:
    """Encodes records; see encode_record.

    Returns:
        The examples, and counts of what was truncated and dropped.

    Raises:
        UserError: no record leaves anything to train on, or a record does not fit the chat template.
    """
    examples: list[Example] = []
    report = EncodingReport()
    for record in records:
        whole = _encode_whole(record, tokenizer)
        kept = _fit(whole, record, tokenizer, max_length)
        report.records += 1
        report.dropped += not kept
        report.examples += len(kept)
        if record.text is None:
            report.truncated += sum(len(example["input_ids"]) > max_length for example in whole)
        report.tokens += sum(len(example["input_ids"]) for example in kept)
        report.trained_tokens += sum(map(trained_count, kept))
        examples += kept
    if not examples:
        raise UserError(
            f"none of the {report.records} records has a token to train on within max_length "
            f"{max_length}; raise max_length, or look at the records' answers"
        )
    return examples, report


def encode_record(record: Record, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    """Encodes one record as ``input_ids`` and ``labels``, lists of equal length, -100 where not trained.

    Messages and completions are trained on the assistant's tokens, including the eos that ends each answer. The ids
    before an answer are exactly those that generation starts from: the prompt, rendered with
    ``add_generation_prompt=True``, encoded. Later turns join the same example as long as that holds; where a template
    shows an earlier answer otherwise than it was trained (dropped thoughts, merged tokens), they start a new one.
    Summaries are trained likewise behind the ids that msllm.data.summaries.prompt_ids makes of their article.
    Texts are trained on every token and on the eos at their end.

    Args:
        record: see msllm.data.formats.
        tokenizer: its chat template lays out messages.
        max_length: most ids in an example. Of a prompt that is too long the end is kept (after the bos), at least
            half of ``max_length``; an answer or a conversation that is too long loses its end. An article gives
            its end up for its summary; a summary that leaves no room loses its own behind half of ``max_length``.
            Texts are cut in pieces that share one token, so that every token is predicted once.

    Returns:
        Mostly one example; more for long texts; none when nothing is left to train on.

    Raises:
        UserError: the tokenizer has no eos, the chat template refuses the record, or no part of an article fits.
    """
    return _fit(_encode_whole(record, tokenizer), record, tokenizer, max_length)


def trained_count(example: Example) -> int:
    """The number of tokens that are predicted; the first never is, as nothing stands before it."""
    return sum(label != IGNORED for label in example["labels"][1:])


def _encode_whole(record: Record, tokenizer: Tokenizer) -> list[Example]:
    if record.text is not None:
        ids = tokenizer.encode(record.text)
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        return [{"input_ids": ids, "labels": list(ids)}]
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no eos_token, so the model could not learn to stop; name one in tokenizer_config.json"
        )
    stops = frozenset(tokenizer.eos_token_ids)
    if record.article is not None:
        prompt = prompt_ids(record.article, tokenizer)
        mark = tokenizer.encode(TL_DR, add_special_tokens=False)
        answer = _answer_ids(TL_DR, summary_text(record.completion), mark, tokenizer, [])
        return [_join(prompt, answer, stops, tokenizer.eos_token_id)] if record.completion.strip() else []
    if record.messages is None:
        prompt = tokenizer.prefix_ids + tokenizer.encode(record.prompt, add_special_tokens=False)
        answer = _answer_ids(record.prompt, record.completion, prompt, tokenizer, tokenizer.prefix_ids)
        return [_join(prompt, answer, stops, tokenizer.eos_token_id)] if record.completion.strip() else []
    return _encode_messages(record, tokenizer, stops)


def _encode_messages(record: Record, tokenizer: Tokenizer, stops: frozenset[int]) -> list[Example]:
    examples: list[Example] = []
    for i, message in enumerate(record.messages):
        if message["role"] != "assistant" or not (message["content"].strip() or message.get("tool_calls")):
            continue
        try:
            prompt = tokenizer.apply_chat_template(record.messages[:i], add_generation_prompt=True, tools=record.tools)
            text = tokenizer.apply_chat_template(record.messages[: i + 1], tools=record.tools)
        except UserError as e:
            raise UserError(f"{record.source}, turn {i + 1}: {e}") from None
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        answer = _answer_text(prompt, text, message["content"], f"{record.source}, turn {i + 1}")
        answer_ids = _answer_ids(prompt, answer, prompt_ids, tokenizer, [])
        example = _join(prompt_ids, answer_ids, stops, tokenizer.eos_token_id)
        before = examples[-1] if examples else {"input_ids": [], "labels": []}
        count = len(before["input_ids"])
        if examples and prompt_ids[:count] == before["input_ids"]:
            example["labels"][:count] = before["labels"]
            examples[-1] = example
        else:
            examples.append(example)
    return examples


def _answer_text(prompt: str, text: str, content: str, source: str) -> str:
    if text.startswith(prompt):
        answer = text[len(prompt) :]
        # A turn that ends in white space alone has no mark to stop at: the eos follows the last word.
        return answer.rstrip() if answer.strip() == content.strip() else answer
    # The template opens a turn otherwise for generation than for history: the answer's own words are what counts.
    start = text.rfind(content) if content else -1
    if start < 0:
        raise UserError(
            f"{source}: the chat template neither continues its generation prompt nor shows the answer "
            f"as given; mend the template"
        )
    return text[start:]


def _answer_ids(prompt: str, answer: str, prompt_ids: list[int], tokenizer: Tokenizer, prefix: list[int]) -> list[int]:
    """Ids that continue ``prompt_ids`` with ``answer``."""
    joint = prefix + tokenizer.encode(prompt + answer, add_special_tokens=False)
    if joint[: len(prompt_ids)] == prompt_ids:
        return joint[len(prompt_ids) :]
    # A token would straddle the border, which generation never sees. Encode the answer by itself, behind a line feed
    # that takes the space which SentencePiece puts before a text.
    feed = tokenizer.encode("\n", add_special_tokens=False)
    after_feed = tokenizer.encode("\n" + answer, add_special_tokens=False)
    if feed and after_feed[: len(feed)] == feed:
        return after_feed[len(feed) :]
    return tokenizer.encode(answer, add_special_tokens=False)


def _join(prompt: list[int], answer: list[int], stops: frozenset[int], eos: int) -> Example:
    """Prompt and answer, trained up to the answer's last stop token; the eos is added when it has none."""
    end = max((i + 1 for i, token in enumerate(answer) if token in stops), default=None)
    answer = [*answer, eos] if end is None else answer[:end]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def _fit(examples: list[Example], record: Record, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    if record.text is not None:
        step = max(max_length - 1, 1)
        examples = [
            {key: values[start : start + max_length] for key, values in example.items()}
            for example in examples
            for start in range(0, max(len(example["input_ids"]) - 1, 1), step)
        ]
    elif record.article is not None:
        examples = [_shorten_article(example, record, tokenizer, max_length) for example in examples]
    else:
        examples = [_truncate(example, max_length, tokenizer.bos_token_id) for example in examples]
    return [example for example in examples if trained_count(example)]


def _shorten_article(example: Example, record: Record, tokenizer: Tokenizer, max_length: int) -> Example:
    if len(example["input_ids"]) <= max_length:
        return example
    answer = [label for label in example["labels"] if label != IGNORED]
    least = len(tokenizer.prefix_ids) + len(tokenizer.encode(TL_DR, add_special_tokens=False)) + 1
    room = max_length - len(answer)
    try:
        prompt = prompt_ids(record.article, tokenizer, room if room >= least else max_length // 2)
    except UserError as e:
        raise UserError(f"{record.source}: {e}") from None
    answer = answer[: max_length - len(prompt)]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def _truncate(example: Example, max_length: int, bos: int | None) -> Example:
    ids, labels = example["input_ids"], example["labels"]
    if len(ids) <= max_length:
        return example
    prompt = next(i for i, label in enumerate(labels) if label != IGNORED)
    answer = next((i for i, label in enumerate(labels[prompt:]) if label == IGNORED), len(ids) - prompt)
    start = prompt - min(prompt, max(max_length - answer, max_length // 2))
    if start and ids[0] == bos and max_length > 2:
        ids, labels = [bos, *ids[start + 1 :]], [IGNORED, *labels[start + 1 :]]
    else:
        ids, labels = ids[start:], labels[start:]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}
