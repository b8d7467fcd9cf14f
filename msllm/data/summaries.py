"""Articles and their summaries: what a language model sees of an article, and the files of LCSTS (Hu et al. 2015)::

    <doc id=0>
        <human_label>5</human_label>
        <summary>
            ...
        </summary>
        <short_text>
            ...
        </short_text>
    </doc>

The articles are the short texts. PART_I, for training, has no human_label; in PART_II and PART_III it says from 1 to 5
how well the summary suits the text, and the paper measures on those of 3 and more.
"""

import re
from pathlib import Path

from msllm.data.formats import Record
from msllm.errors import UserError
from msllm.tokenization import Tokenizer

# What makes a language model summarise (Radford et al. 2019, section 3.6).
TL_DR = "\nTL;DR:"
HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN, _OTHER_WORD = re.compile(f"[{HAN}]"), re.compile(rf"[^\W_{HAN}]+")
_DOC = re.compile(r'\s*<doc id="?(\d+)"?>')
_PARTS = re.compile(
    r"\s*(?:<human_label>\s*(\d+)\s*</human_label>\s*)?<summary>(.*?)</summary>\s*"
    r"<short_text>(.*?)</short_text>\s*</doc>\s*",
    re.DOTALL,
)


def in_chinese(text: str) -> bool:
    """Whether a text has more Chinese characters than words in other letters."""
    return len(_HAN.findall(text)) > len(_OTHER_WORD.findall(text))


def prompt_ids(article: str, tokenizer: Tokenizer, room: int | None = None) -> list[int]:
    """Returns the ids that a summary follows, in training as in generation: the article, a line feed and "TL;DR:".

    Args:
        article: the text; white space around it is left out.
        tokenizer: puts its special ids, such as a bos, before the text.
        room: most ids; an article that is too long loses its end. None: no bound.

    Raises:
        UserError: ``room`` leaves nothing of the article.
    """
    article = article.strip()
    encoding = tokenizer.backend.encode(article + TL_DR, add_special_tokens=False)
    ids = tokenizer.prefix_ids + encoding.ids
    if room is None or len(ids) <= room:
        return ids
    ends = [end for _, end in encoding.offsets if 0 < end <= len(article)]
    kept = len(ends)
    # A cut may change the tokens before it, for example inside a character of several: then more is cut.
    while len(ids) > room and kept:
        kept = max(kept - (len(ids) - room), 0)
        rest = article[: ends[kept - 1]].rstrip() if kept else ""
        ids = tokenizer.prefix_ids + tokenizer.encode(rest + TL_DR, add_special_tokens=False)
    if not kept:
        raise UserError(
            f'there is room for {max(room, 0)} tokens of an article and "TL;DR:", which alone has {len(ids)}; raise '
            f"max_length, or lower max_new_tokens"
        )
    return ids


def summary_text(summary: str) -> str:
    """Returns a summary as it stands behind "TL;DR:": after a space, unless it is Chinese."""
    summary = summary.strip()
    return summary if in_chinese(summary) else f" {summary}"


def is_lcsts(text: str) -> bool:
    """Whether the content of a file looks like LCSTS."""
    return _DOC.match(text) is not None


def parse_lcsts(text: str, path: str | Path, min_score: int | None = None) -> list[Record]:
    """Returns the records of a file of LCSTS, its short texts as articles.

    Args:
        text: the content of the file.
        path: named in errors.
        min_score: keep only the summaries whose human_label is at least so much.

    Raises:
        UserError: a doc of another form, named by its line; ``min_score`` where docs have no human_label, or where none
            reaches it.
    """
    found = list(_DOC.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    records = []
    for match, end in zip(found, ends, strict=True):
        parts = _PARTS.fullmatch(text, match.end(), end)
        if parts is None or not all(part.strip() for part in parts.groups()[1:]):
            raise UserError(
                f"{_place(text, path, match)}: expected <summary> and <short_text>, neither empty, maybe after a "
                f"<human_label> number, and </doc>; mend that doc"
            )
        score, summary, article = parts.groups()
        if min_score is not None and score is None:
            raise UserError(f"{_place(text, path, match)} has no human_label; leave min_score out")
        if min_score is None or int(score) >= min_score:
            source = f"{path}, doc {match[1]}"
            records.append(Record(article=article.strip(), completion=summary.strip(), source=source))
    if not records:
        raise UserError(f"{path} has no doc whose human_label is {min_score} or more; lower min_score")
    return records


def _place(text: str, path: str | Path, match: re.Match) -> str:
    line = text.count("\n", 0, match.end()) + 1
    return f"{path}, line {line} (doc {match[1]})"
