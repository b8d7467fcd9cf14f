"""Nucleus sampling in numpy: which tokens may be drawn at all.

Shapes: V tokens of the vocabulary. Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration",
section 3.1.
"""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turns logits into probabilities.

    Args:
        logits: float32 (V,); -inf where a token is left out already; values of 1000 and more must not overflow.

    Returns:
        float32 (V,), which add up to 1; 0 where the logit is -inf.
    """
    ...


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keeps the tokens of the nucleus: the smallest set of most likely tokens whose probability together reaches p.

    The token with which the sum reaches p belongs to the set; so at least one token stays, also where p is tiny.

    Args:
        logits: float32 (V,), of tokens in any order; it stays as it is.
        p: above 0, below 1.

    Returns:
        float32 (V,): the logits of the tokens that stay, in their places, -inf for the others.

    Steps: order = np.argsort(-logits) names the tokens from the most to the least likely; np.cumsum over their
    probabilities; the tokens before which less than p was reached stay; write their logits into an array of -inf.
    """
    ...
