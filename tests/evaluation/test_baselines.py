"""The bag of words: it learns what words tell, always the same, and refuses what it cannot learn from."""

import numpy as np
import pytest

from msllm.errors import UserError
from msllm.evaluation.baselines import bag_of_words

WORDS = {"pos": ["good", "great", "fine"], "neg": ["bad", "poor", "dull"]}


def reviews(count, seed):
    """Sentences of words that tell nothing, with one word of their class among them, and their classes."""
    rng = np.random.default_rng(seed)
    labels = [str(rng.choice(["pos", "neg"])) for _ in range(count)]
    sentences = []
    for label in labels:
        words = [*rng.choice(["film", "book", "play", "the", "was", "and"], 6), rng.choice(WORDS[label])]
        sentences.append(" ".join(rng.permutation(words)))
    return sentences, labels


@pytest.mark.parametrize("characters", [False, True])
def test_it_learns_and_is_the_same_every_time(characters):
    texts, labels = reviews(200, 0)
    test_texts, test_labels = reviews(100, 1)
    first, second = (bag_of_words(texts, labels, test_texts, characters) for _ in range(2))
    assert first == second == test_labels
    shuffled = [labels[i] for i in np.random.default_rng(2).permutation(len(labels))]
    guesses = bag_of_words(texts, shuffled, test_texts, characters)
    assert sum(a == b for a, b in zip(guesses, test_labels)) < 80  # labels that tell nothing teach nothing


def test_what_cannot_be_learned_from_is_named():
    texts, labels = reviews(9, 0)
    with pytest.raises(UserError, match="9 texts to learn from, expected 10 or more"):
        bag_of_words(texts, labels, ["good"], False)
    texts, labels = reviews(20, 0)
    with pytest.raises(UserError, match="the 18 texts to learn from are all of the class 'pos'"):
        bag_of_words(texts, ["pos"] * 20, ["good"], False)
    # The only text of the other class may be the one that is held out.
    refused = 0
    for seed in range(20):
        try:
            assert len(bag_of_words(texts[:10], ["neg", *["pos"] * 9], ["good"], False, seed)) == 1
        except UserError:
            refused += 1
    assert 0 < refused < 20
