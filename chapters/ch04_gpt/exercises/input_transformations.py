"""GPT-1 on tasks that are no plain text: structured inputs as sequences of ids, so that the model stays as it is.

Three tokens are added to the vocabulary for it: start, delimiter and extract. The head of the task reads the hidden
state of the last token, extract. Source: Radford et al. 2018, "Improving Language Understanding by Generative
Pre-Training", section 3.3 and figure 1 (there ⟨s⟩, $ and ⟨e⟩). No numpy here: ids are lists of integers.
"""

Ids = list[int]


def classification(text: Ids, start: int, extract: int) -> Ids:
    """One text, to be put into a class: start, text, extract.

    Args:
        text: ids of the text; it stays as it is, here and below.
        start, extract: ids of the two tokens.

    Returns:
        The ids of the whole input.
    """
    ...


def entailment(premise: Ids, hypothesis: Ids, start: int, delimiter: int, extract: int) -> Ids:
    """Two texts in a fixed order, does the second follow from the first: with the delimiter between them.

    Returns:
        The ids of the whole input.
    """
    ...


def similarity(first: Ids, second: Ids, start: int, delimiter: int, extract: int) -> list[Ids]:
    """Two texts without an order, do they say the same.

    A GPT reads from left to right, so each order is an input of its own; the two hidden states are added before
    the head.

    Returns:
        Two inputs, the one with ``first`` in front, then the one with ``second`` in front.
    """
    ...


def multiple_choice(
    document: Ids, question: Ids, answers: list[Ids], start: int, delimiter: int, extract: int
) -> list[Ids]:
    """A document, a question about it and several answers, of which one is right.

    Document and question together are the context, without anything between them; each answer stands behind it,
    after the delimiter. The head gives a score to each input, softmax compares them.

    Returns:
        An input for each answer, in the order of the answers. Where there is no question, as in a story whose end is
        to be chosen, ``question`` is empty.
    """
    ...
