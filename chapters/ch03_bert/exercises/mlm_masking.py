"""BERT's masking in numpy: which tokens a masked language model has to find, and what it sees in their place.

Source: Devlin et al. 2019, "BERT", section 3.1, task 1, and appendix A.1.
"""

import numpy as np


def mask_tokens(
    ids: np.ndarray, special: np.ndarray, mask_id: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses 15% of the tokens for the model to find; of these 80% become [MASK], 10% a random token, 10% stay.

    Special tokens such as [CLS], [SEP] and padding are not chosen, and no token becomes one (but [MASK]).

    Args:
        ids: int32 (T,), one sequence; it stays as it is.
        special: bool (V,), for each id of the vocabulary whether it is a special token: special[ids] is (T,).
        mask_id: the id of [MASK].
        rng: where all randomness comes from, so that the same seed gives the same masks.

    Returns:
        What the model sees, integers (T,); and the labels, integers (T,): the token that was there before where one
        was chosen (also where it stays: the model cannot tell), -100 elsewhere.

    Hint: rng.random(T) < 0.15 chooses each token by itself; choosing a fixed number of the tokens that may be, rounded,
    is as good. A second rng.random(T) decides what becomes of a chosen one: below 0.8, from 0.8 to 0.9, above.
    rng.choice(np.flatnonzero(~special), T) gives random tokens. Change a copy, ids.copy().
    """
    ...
