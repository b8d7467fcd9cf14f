"""Tagged sentences: reading their files and encoding them for a BERT, to recognise entities.

Files are .jsonl; any other ending is columns::

    Alex B-PER                       token first, tag last, a blank line between sentences
    {"tokens": ["Alex", "left"], "ner_tags": ["B-PER", "O"]}
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msllm.data.encoding import IGNORED
from msllm.data.loading import json_lines
from msllm.data.tasks import TaskReport, content_of, label_number
from msllm.errors import UserError
from msllm.tokenization import Tokenizer

TAGS = ("ner_tags", "tags", "labels")


@dataclass(frozen=True)
class TaggedSentence:
    """Tokens and their tags, None where the file has none.

    Attributes:
        path, line: where the sentence begins.
        columns: whether each token has a line of its own.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    path: str = "sentence"
    line: int = 1
    columns: bool = False

    def place(self, token: int) -> str:
        """Returns where a token stands, for messages."""
        return f"{self.path}, line {self.line + token}" if self.columns else f"{self.path}, line {self.line}"


def read_tagged(path: str | Path, limit: int | None = None, names: Sequence[str] | None = None) -> list[TaggedSentence]:
    """Reads tagged sentences, the first ``limit`` of them; the formats stand at the top of this module.

    Args:
        names: what tags that are numbers mean, by number.

    Raises:
        UserError: a missing or empty file, a line without a tag, tokens and tags that do not pair up, a number
            without names, tags of which only some are of the form B-X.
    """
    path = Path(path)
    text = content_of(path)
    rows = _json_sentences(path, text, names) if path.suffix == ".jsonl" else _column_sentences(path, text)
    sentences = list(itertools.islice(rows, limit))
    if not sentences:
        raise UserError(f"{path} has no sentence; expected a token and its tag a line")
    _check_tags(sentences)
    return sentences


def _column_sentences(path: Path, text: str) -> Iterator[TaggedSentence]:
    rows: list[list[str]] = []
    for n, line in enumerate([*text.split("\n"), ""], 1):
        # Where tabs stand between the columns, a token may hold spaces.
        row = line.strip("\r").split("\t") if "\t" in line else line.split()
        if not any(cell.strip() for cell in row):
            if rows:
                yield _columns_to_sentence(path, rows, n - len(rows))
            rows = []
        elif row[0] != "-DOCSTART-":
            if len(row) < 2 or not row[0].strip() or not row[-1].strip():
                raise UserError(f"{path}, line {n} is {line[:60]!r}, expected a token and its tag; mend that line")
            rows.append(row)


def _columns_to_sentence(path: Path, rows: list[list[str]], line: int) -> TaggedSentence:
    tokens, tags = zip(*((row[0].strip(), row[-1].strip()) for row in rows))
    return TaggedSentence(tokens, tags, str(path), line, True)


def _json_sentences(path: Path, text: str, names: Sequence[str] | None) -> Iterator[TaggedSentence]:
    for n, row in json_lines(path, text):
        tokens, key = row.get("tokens"), next((key for key in TAGS if key in row), None)
        if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t.strip() for t in tokens):
            raise UserError(f"{path}, line {n}: tokens is {str(tokens)[:60]}, expected a list of words; mend that line")
        tags = None
        if key is not None:
            if not isinstance(row[key], list) or len(row[key]) != len(tokens):
                raise UserError(f"{path}, line {n}: {len(tokens)} tokens, but {key} is {str(row[key])[:60]}; mend it")
            tags = tuple(_tag(tag, names, f"{path}, line {n}") for tag in row[key])
        yield TaggedSentence(tuple(tokens), tags, str(path), n)


def _tag(tag, names: Sequence[str] | None, source: str) -> str:
    if isinstance(tag, str) and tag.strip():
        return tag.strip()
    if isinstance(tag, bool) or not isinstance(tag, int):
        raise UserError(f"{source} has the tag {tag!r}, expected a name such as B-PER; mend it")
    if names is None or not 0 <= tag < len(names):
        given = "no names were given" if names is None else f"{len(names)} names were given"
        raise UserError(f"{source} has the tag number {tag}, and {given}; name all tags by number with --labels")
    return names[tag]


def tag_scheme(tags: Iterable[str]) -> str | None:
    """Returns how tags mark entities: "BIO", "BIOES", or None where they mark none, as parts of speech."""
    beginnings = {tag[:2] for tag in tags if is_entity_tag(tag)}
    return None if not beginnings else "BIOES" if beginnings & {"E-", "S-"} else "BIO"


def is_entity_tag(tag: str) -> bool:
    """Whether a tag is of the form B-X, I-X, E-X or S-X."""
    return re.fullmatch(r"[BIES]-.+", tag) is not None


def _check_tags(sentences: Sequence[TaggedSentence]) -> None:
    """Refuses a file in which some tags are entities' and some are neither that nor O: mostly a slip of the pen."""
    places = ((s, i, tag) for s in sentences for i, tag in enumerate(s.tags or ()))
    entity, plain = False, None
    for sentence, i, tag in places:
        entity = entity or is_entity_tag(tag)
        if plain is None and tag != "O" and not is_entity_tag(tag):
            plain = (sentence.place(i), tag)
    if entity and plain:
        raise UserError(
            f"{plain[0]} has the tag {plain[1]!r}, others are of the form B-X; expected O or one of B-, I-, E-, S- and "
            f"a type, such as B-PER; correct it"
        )


def encode_tagged(
    sentences: Sequence[TaggedSentence], tokenizer: Tokenizer, labels: Sequence[str], max_length: int
) -> tuple[list[dict], TaskReport]:
    """Encodes sentences as ``input_ids``, ``token_type_ids``, ``labels`` and ``words``.

    A word's first piece carries its label, all else -100 (Devlin et al. 2019, section 5.3). ``words`` holds the
    position of each word's first piece, -1 where the word was cut off or has no piece.

    Raises:
        UserError: a tag that is not in ``labels``, with its file and line.
    """
    examples, report = [], TaskReport("sentences", max_length)
    room = max_length - tokenizer.backend.num_special_tokens_to_add(False)
    if room < 1:
        raise UserError(f"max_length {max_length} leaves no room for a word; use at least {max_length - room + 1}")
    for sentence in sentences:
        encoded = tokenizer.backend.encode(list(sentence.tokens), is_pretokenized=True, add_special_tokens=False)
        report.truncated += len(encoded) > room
        encoded.truncate(room)
        encoded = tokenizer.backend.post_process(encoded, None, True)
        words = [-1] * len(sentence.tokens)
        for position, word in reversed(list(enumerate(encoded.word_ids))):
            if word is not None:
                words[word] = position
        numbers = [IGNORED] * len(encoded)
        for i, tag in enumerate(sentence.tags or ()):
            number = label_number(tag, labels, sentence.place(i))
            if words[i] >= 0:
                numbers[words[i]] = number
        ids, types = encoded.ids, encoded.type_ids
        examples.append({"input_ids": ids, "token_type_ids": types, "labels": numbers, "words": words})
        report.tokens += len(ids)
    report.records = report.examples = len(examples)
    return examples, report
