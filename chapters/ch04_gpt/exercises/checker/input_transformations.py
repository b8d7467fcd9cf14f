"""Checks input_transformations.py against figure 1 of the paper; the library has no such functions."""

import copy
from collections.abc import Callable

from msllm.lessons.checking import Task, Wrong, against

START, DELIMITER, EXTRACT = 90, 91, 92
# No id comes twice, so that what stands where is plain.
FIRST, SECOND, THIRD = [11, 12, 13], [21, 22], [31, 32, 33, 34]
NOT_ALWAYS = "the ids of start, delimiter and extract are arguments: they are not the same for every tokenizer"


def checked(reference: Callable, cases: Callable, mistakes: list) -> Callable[[Callable], None]:
    """against(), after a look at the form: lists of ids, and the arguments left alone."""
    check = against(reference, cases, mistakes)

    def whole(function: Callable) -> None:
        def plain(*args):
            given = copy.deepcopy(args)
            result = function(*given)
            if given != args:
                raise Wrong("an argument is changed, as with append, insert or +=; build a new list")
            return _plain(result)

        check(plain)

    return whole


def _plain(result):
    """Tuples and arrays as lists; what has no elements as it is."""
    result = result.tolist() if hasattr(result, "tolist") else result
    return [_plain(x) for x in result] if isinstance(result, (list, tuple)) else result


def text_cases():
    """Two texts and other ids; an empty text."""
    return [(FIRST, START, EXTRACT), (SECOND, 5, 7), ([], START, EXTRACT)]


def classification(text, start, extract):
    return [start, *text, extract]


CLASSIFICATION_MISTAKES = [
    ("the start token is missing", lambda t, s, e: [*t, e]),
    ("the extract token is missing: the head reads the hidden state of the last token", lambda t, s, e: [s, *t]),
    ("start and extract are exchanged", lambda t, s, e: [e, *t, s]),
    ("a list in the list: write [start, *text, extract]", lambda t, s, e: [s, t, e]),
    ("the extract token stands in front, as a BERT's [CLS]; it must come last to see all", lambda t, s, e: [s, e, *t]),
    ("the text alone", lambda t, s, e: [*t]),
    (NOT_ALWAYS, lambda t, s, e: [START, *t, EXTRACT]),
]


def pair_cases():
    """Two texts of different lengths, both ways round and with other ids; texts that are the same."""
    tokens = (START, DELIMITER, EXTRACT)
    return [(FIRST, SECOND, *tokens), (SECOND, FIRST, 5, 6, 7), (FIRST, FIRST, *tokens)]


def entailment(premise, hypothesis, start, delimiter, extract):
    return [start, *premise, delimiter, *hypothesis, extract]


def _pair(a, b, s, d, e, between="d", first="s", last="e", begin=""):
    tokens = {"s": [s], "d": [d], "e": [e], "": []}
    return [*tokens[first], *a, *tokens[between], *tokens[begin], *b, *tokens[last]]


def _wrong_pair(**how):
    return lambda *args: _pair(*args, **how)


PAIR_MISTAKES = [
    ("the texts are exchanged: the premise comes first", lambda a, b, s, d, e: _pair(b, a, s, d, e)),
    ("the delimiter is missing between the texts", _wrong_pair(between="")),
    ("extract stands between the texts; there it is the delimiter", _wrong_pair(between="e")),
    ("delimiter and extract are exchanged", _wrong_pair(between="e", last="d")),
    ("the extract token is missing: the head reads the hidden state of the last token", _wrong_pair(last="")),
    ("the start token is missing", _wrong_pair(first="")),
    ("the second text has a start token of its own; there is one, in front", _wrong_pair(begin="s")),
    ("the texts end with the delimiter; the last token is extract", _wrong_pair(last="d")),
    ("a delimiter before extract too", lambda a, b, s, d, e: [s, *a, d, *b, d, e]),
    (NOT_ALWAYS, lambda a, b, s, d, e: _pair(a, b, START, DELIMITER, EXTRACT)),
]


def similarity(first, second, start, delimiter, extract):
    tokens = (start, delimiter, extract)
    return [entailment(first, second, *tokens), entailment(second, first, *tokens)]


def _both(pair: Callable) -> Callable:
    return lambda a, b, *tokens: [pair(a, b, *tokens), pair(b, a, *tokens)]


SIMILARITY_MISTAKES = [
    ("one order only: the texts have none, so both are read", lambda *args: [_pair(*args)]),
    ("one order only, and no list of inputs", lambda *args: _pair(*args)),
    ("the same order twice", lambda *args: [_pair(*args)] * 2),
    ("the input with the first text in front comes first", lambda a, b, *t: [_pair(b, a, *t), _pair(a, b, *t)]),
    (
        "one long input; the two orders are inputs of their own",
        lambda a, b, s, d, e: _pair(a, b, s, d, e) + _pair(b, a, s, d, e),
    ),
    *[(text, _both(pair)) for text, pair in PAIR_MISTAKES[1:]],
]


def choice_cases():
    """A document and a question with three answers, a story without a question, one answer, other ids."""
    answers = [[41, 42], [51], [61, 62, 63]]
    return [
        (FIRST, THIRD, answers, START, DELIMITER, EXTRACT),
        (FIRST, [], answers[:2], START, DELIMITER, EXTRACT),
        (SECOND, THIRD, answers[:1], 5, 6, 7),
    ]


def multiple_choice(document, question, answers, start, delimiter, extract):
    return [[start, *document, *question, delimiter, *answer, extract] for answer in answers]


def _each(build: Callable) -> Callable:
    return lambda z, q, answers, s, d, e: [build(z, q, a, s, d, e) for a in answers]


CHOICE_MISTAKES = [
    ("the question is missing", _each(lambda z, q, a, s, d, e: _pair(z, a, s, d, e))),
    ("the document is missing", _each(lambda z, q, a, s, d, e: _pair(q, a, s, d, e))),
    (
        "a delimiter between document and question: together they are the context, with nothing between",
        _each(lambda z, q, a, s, d, e: [s, *z, d, *q, d, *a, e]),
    ),
    (
        "a delimiter between document and question: together they are the context, with nothing between",
        _each(lambda z, q, a, s, d, e: [s, *z, *([d, *q] if q else []), d, *a, e]),
    ),
    ("the delimiter stands before the question; it comes after", _each(lambda z, q, a, s, d, e: [s, *z, d, *q, *a, e])),
    ("the question comes before the document", _each(lambda z, q, a, s, d, e: _pair(q + z, a, s, d, e))),
    ("the answer comes first; it stands behind the context", _each(lambda z, q, a, s, d, e: _pair(a, z + q, s, d, e))),
    (
        "all answers in one input; each is an input of its own",
        lambda z, q, answers, s, d, e: [s, *z, *q, *(i for a in answers for i in (d, *a)), e],
    ),
    (
        "all answers in one input; each is an input of its own",
        lambda z, q, answers, s, d, e: [[s, *z, *q, *(i for a in answers for i in (d, *a)), e]],
    ),
    ("only the first answer", lambda z, q, answers, s, d, e: [_pair(z + q, answers[0], s, d, e)]),
    ("the answers are in the reverse order", lambda z, q, a, *t: multiple_choice(z, q, a[::-1], *t)),
    *[(text, _each(lambda z, q, a, *t, pair=pair: pair(z + q, a, *t))) for text, pair in PAIR_MISTAKES[1:]],
]


TASKS = (
    Task("classification", checked(classification, text_cases, CLASSIFICATION_MISTAKES)),
    Task("entailment", checked(entailment, pair_cases, PAIR_MISTAKES)),
    Task("similarity", checked(similarity, pair_cases, SIMILARITY_MISTAKES)),
    Task("multiple_choice", checked(multiple_choice, choice_cases, CHOICE_MISTAKES)),
)
