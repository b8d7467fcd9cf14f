"""Checks mlm_masking.py: what must always hold, and shares over many draws beside those of msllm.data.pretraining."""

from collections.abc import Callable

import numpy as np

from msllm.lessons.checking import Task, Wrong

VOCABULARY, MASK_ID, DRAWS = 400, 4, 600
# A fifth of the vocabulary, so that drawing a special token is seen; the last ids are some too.
SPECIAL = np.isin(np.arange(VOCABULARY), [*range(40), *range(360, VOCABULARY)])
PADDING, CLS, SEP = 0, 2, 3
NAMES = {PADDING: "padding", CLS: "[CLS]", SEP: "[SEP]"}
# 60 tokens that may be chosen, so that 15% are 9.
IDS = np.array([CLS, *range(100, 130), SEP, *range(200, 230), SEP, *[PADDING] * 5], np.int32)
FREE = ~SPECIAL[IDS]
# Five standard deviations of the difference of two samples.
SHARE_BOUND, FATE_BOUND = 0.012, 0.04

SPLITS = [
    ((1.0, 0.0, 0.0), "all chosen tokens become [MASK]; 10% become a random token, 10% stay"),
    ((0.8, 0.2, 0.0), "none stays as it is; the random tokens are half of the 20% that do not become [MASK]"),
    ((0.9, 0.1, 0.0), "none stays as it is; 80% become [MASK], not the 10% too that stay"),
    ((0.8, 0.0, 0.2), "none becomes a random token"),
    ((0.9, 0.0, 0.1), "none becomes a random token"),
    (
        (0.8, 0.02, 0.18),
        "the 10% is taken of the 20% that are left: of these it is half, or compare one draw with 0.8 and 0.9",
    ),
    ((0.1, 0.8, 0.1), "80% become a random token and 10% [MASK]; it is the other way round"),
    ((0.1, 0.1, 0.8), "80% stay and 10% become [MASK]; it is the other way round"),
    ((0.0, 0.0, 1.0), "the ids are returned as they were"),
]


def check_masking(function: Callable) -> None:
    _check_form(function)
    masked, labels = _draw(function)
    _check_labels(masked, labels)
    _check_choice(labels)
    _check_fates(masked, labels)
    _check_replacements(masked, labels)


def _library(ids, special, mask_id, rng):
    from msllm.data.pretraining import Masking, mask_tokens

    return mask_tokens(ids, Masking(mask_id, special), rng)


def _call(function: Callable, rng: np.random.Generator):
    return function(IDS.copy(), SPECIAL.copy(), MASK_ID, rng)


def _draw(function: Callable, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the model sees and the labels of many calls, each (draws, T)."""
    rng = np.random.default_rng(0)
    results = [_call(function, rng) for _ in range(draws)]
    return np.stack([r[0] for r in results]), np.stack([r[1] for r in results])


def _check_form(function: Callable) -> None:
    """One call: types and shapes, ids left alone, randomness from rng and from nothing else."""
    ids, rng = IDS.copy(), np.random.default_rng(7)
    before = rng.bit_generator.state
    result = function(ids, SPECIAL.copy(), MASK_ID, rng)
    if result is None:
        raise Wrong("returned nothing (None); is a return missing?")
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong(f"returned a value of type {type(result).__name__}, expected two arrays: return masked, labels")
    for name, array in zip(("what the model sees", "labels"), result):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise Wrong(f"{name}: of type {kind}, expected a numpy array of integers")
        if array.shape != IDS.shape:
            raise Wrong(f"{name}: shape {array.shape}, expected {IDS.shape}")
    if not np.array_equal(ids, IDS):
        raise Wrong("ids itself is changed, and labels read from it afterwards are wrong; change a copy, ids.copy()")
    if rng.bit_generator.state == before:
        raise Wrong("rng is not used; all randomness comes from it")
    if any(not np.array_equal(a, b) for a, b in zip(_draw(function, 30), _draw(function, 30))):
        raise Wrong("the same seed gives other masks: some of the randomness comes from elsewhere, such as np.random")


def _check_labels(masked: np.ndarray, labels: np.ndarray) -> None:
    chosen = labels != -100
    if chosen.all():
        values, counts = np.unique(labels, return_counts=True)
        what = "the token itself" if (labels == IDS).all() else f"{values[counts.argmax()]}, as it seems"
        raise Wrong(f"labels are nowhere -100; where no token was chosen they are {what}")
    if (chosen & ~FREE).any():
        at = int(np.argwhere(chosen & ~FREE)[0][1])
        raise Wrong(f"special tokens are chosen: position {at} is {NAMES[int(IDS[at])]}; leave out special[ids]")
    if not chosen.any():
        raise Wrong(f"no token was chosen in {DRAWS} sequences: labels are -100 everywhere")
    wrong = chosen & (labels != IDS)
    if wrong.any():
        draw, at = np.argwhere(wrong)[0]
        lines = [f"the label at position {at} is {labels[draw, at]}, the token there before masking is {IDS[at]}"]
        if (labels == masked)[chosen].all():
            lines.append("likely mistake: labels are read from the masked ids")
        raise Wrong(*lines)
    changed = ~chosen & (masked != IDS)
    if changed.any():
        draw, at = np.argwhere(changed)[0]
        raise Wrong(
            f"position {at} was changed from {IDS[at]} to {masked[draw, at]}, but its label is -100: "
            f"only chosen tokens change"
        )


def _check_choice(labels: np.ndarray) -> None:
    """15% of the tokens that may be chosen, each as likely as the others."""
    chosen = (labels != -100)[:, FREE]
    share, right = chosen.mean(), (_draw(_library)[1] != -100)[:, FREE].mean()
    if abs(share - right) > SHARE_BOUND:
        lines = [f"{share:.1%} of the tokens that may be chosen have a label, right is {right:.1%}"]
        if abs(share - right * len(IDS) / FREE.sum()) < SHARE_BOUND:
            lines.append("likely mistake: the number is 15% of all tokens, with the special ones")
        elif abs(share - right * 0.9) < SHARE_BOUND / 2:
            lines.append("likely mistake: chosen tokens that stay as they are have no label")
        raise Wrong(*lines)
    times = chosen.sum(0)
    odd = np.abs(times - DRAWS * right) > 6 * (DRAWS * right * (1 - right)) ** 0.5
    if odd.any():
        at = int(np.flatnonzero(FREE)[np.flatnonzero(odd)[0]])
        raise Wrong(
            f"position {at} was chosen {times[np.flatnonzero(odd)[0]]} times in {DRAWS} sequences, "
            f"right is about {DRAWS * right:.0f}: every token that may be chosen is as likely as the others"
        )


def _fates(masked: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the shares of the chosen tokens that became [MASK], became another token, and stayed."""
    seen, label = masked[labels != -100], labels[labels != -100]
    shares = [(seen == MASK_ID).mean(), ((seen != MASK_ID) & (seen != label)).mean(), (seen == label).mean()]
    return np.array(shares)


def _check_fates(masked: np.ndarray, labels: np.ndarray) -> None:
    got, right = _fates(masked, labels), _fates(*_draw(_library))
    if (np.abs(got - right) <= FATE_BOUND).all():
        return

    def words(shares):
        return "{:.0%} became [MASK], {:.0%} a random token, {:.0%} stayed".format(*shares)

    distance, text = min((np.abs(got - split).max(), text) for split, text in SPLITS)
    likely = [f"likely mistake: {text}"] if distance < FATE_BOUND else []
    raise Wrong(f"of the chosen tokens {words(got)}", f"right is {words((0.8, 0.1, 0.1))}", *likely)


def _check_replacements(masked: np.ndarray, labels: np.ndarray) -> None:
    """The random tokens: of the vocabulary, not special, drawn anew each time and from all of it."""
    other = (labels != -100) & (masked != MASK_ID) & (masked != labels)
    tokens = masked[other]
    if tokens.min() < 0 or tokens.max() >= VOCABULARY:
        bad = tokens[(tokens < 0) | (tokens >= VOCABULARY)][0]
        raise Wrong(f"a random token has the id {bad}; the vocabulary goes from 0 to {VOCABULARY - 1}")
    if SPECIAL[tokens].any():
        raise Wrong(f"a random token is the special token {tokens[SPECIAL[tokens]][0]}; draw from ~special only")
    several = [masked[draw][other[draw]] for draw in range(DRAWS) if other[draw].sum() > 1]
    if all(len(set(row.tolist())) == 1 for row in several):
        raise Wrong("all random tokens of a sequence are the same; draw one for each position")
    kinds, ordinary = len(np.unique(tokens)), int((~SPECIAL).sum())
    if kinds < ordinary / 2:
        raise Wrong(f"{len(tokens)} random tokens are only {kinds} different ones of {ordinary}; draw from all of them")


TASKS = (Task("mask_tokens", check_masking),)
