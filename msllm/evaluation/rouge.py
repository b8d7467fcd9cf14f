"""Summaries beside those of people: ROUGE by Google's rouge_score, and the first sentences, which are hard to beat."""

import re
from collections.abc import Sequence

from msllm.data.summaries import HAN
from msllm.errors import UserError

TYPES = ("rouge1", "rouge2", "rougeL")
# A word or a number such as 3.5 and 1,000 is one token, a Chinese character another.
_TOKENS = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:(?<=\d)[.,]\d+)*")
# Where a sentence may end: marks of Chinese, those of other languages before a space or a Chinese character, a line.
_ENDS = re.compile(
    rf"[。！？]+[”’」』）】]*|[.!?]+[\"'”’)\]]*(?=\s|$)|[!?]+[”’]*(?=[{HAN}])|(?=\n)",
)
_NEVER_LAST = re.compile(
    r"adm|capt|cmdr|col|dr|e\.g|gen|gov|hon|i\.e|lt|maj|messrs|mrs?|ms|pres|prof|reps?|rev|sens?|sgt|st|supt|vs", re.I
)
_NUMBERED = re.compile(r"fig|no|nos|p|pp|vol", re.I)
_SELDOM_LAST = re.compile(
    r"(?:[^\W\d_]\.)*[^\W\d_]|al|apr|aug|ave|bros|co|corp|dec|dept|est|etc|feb|inc|jan|jr|jul|jun|ltd|mar|nov|oct|"
    r"ph\.d|sept?|sr",
    re.I,
)
_OPENERS = re.compile(
    r"A|After|All|An|And|As|At|But|By|For|From|He|Her|His|However|I|If|In|Its?|Many|Most|On|One|Our|She|So|Some|Still|"
    r"That|The|Their|Then|There|These|They|This|Those|To|We|What|When|While|With|You"
)


class ChineseTokens:
    """The tokenizer that rouge_score asks for; its own drops all but a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        """Returns the Chinese characters, words and numbers of a text in lower case, without punctuation."""
        return _TOKENS.findall(text.lower())


def rouge(references: Sequence[str], summaries: Sequence[str], chinese: bool) -> dict[str, float]:
    """Returns ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): the mean F1 of the pairs, 0 to 1.

    Args:
        references: the summaries of people, one for each of ``summaries``.
        summaries: those to score; an empty one scores 0.
        chinese: count Chinese characters, and words and numbers in other letters; otherwise words of a to z and digits,
            by Porter's stems.

    Returns:
        {"rouge1", "rouge2", "rougeL"}; ROUGE-L is of the whole summary as one sequence, not sentence by sentence.

    Raises:
        UserError: no summaries, or another number of references.
    """
    if not summaries or len(references) != len(summaries):
        raise UserError(
            f"{len(summaries)} summaries and {len(references)} references; give one for each, and at least one"
        )
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(TYPES), use_stemmer=True, tokenizer=ChineseTokens() if chinese else None)
    scores = [scorer.score(reference, summary) for reference, summary in zip(references, summaries, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in TYPES}


def lead_3(article: str) -> str:
    """Returns the first three sentences of an article."""
    return first_sentences(article, 3)


def first_sentences(text: str, count: int) -> str:
    """Returns the first sentences of a text in English or Chinese, or all of it where it has no more.

    A line feed ends a sentence; the stop of 3.5, of Mr. and of U.S. does not, unless a word such as "The" follows that
    opens sentences.
    """
    text = text.strip()
    begin = found = 0
    for match in _ENDS.finditer(text):
        end = match.end()
        if not text[begin:end].strip() or not _is_end(text, match):
            continue
        begin, found = end, found + 1
        if found == count:
            return text[:end].rstrip()
    return text


def _is_end(text: str, match: re.Match) -> bool:
    """Whether a mark that may end a sentence does."""
    mark, rest = match[0], text[match.end() : match.end() + 80]
    if not rest.strip() or rest.lstrip(" \t")[0] == "\n":
        return True
    if mark[0] in "。！？":
        return rest[0] not in "，、；："
    after = re.match(r"\s*[\"'“‘(\[]*(\w*)", rest)[1]
    if mark[0] != "." or mark.startswith("..") or after[:1].islower():
        return not after[:1].islower()
    before = re.search(r"[\w.&’'-]*$", text[max(match.start() - 20, 0) : match.start()])[0].strip("’'-")
    if _NEVER_LAST.fullmatch(before) or (_NUMBERED.fullmatch(before) and after[:1].isdigit()):
        return False
    return _OPENERS.fullmatch(after) is not None or not _SELDOM_LAST.fullmatch(before)
