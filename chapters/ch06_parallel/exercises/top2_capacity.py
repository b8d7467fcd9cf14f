"""Top-2 routing in numpy: which two experts work on a token, with which weights, and what an expert has no room for.

Shapes: N tokens, E experts, 2 choices of a token. Source: Lepikhin et al. 2021, "GShard", section 2.2; Jiang et al.
2024, "Mixtral of Experts", section 2.1; Fedus et al. 2022, "Switch Transformers", equations 4 to 6.
"""

import numpy as np


def choose(logits: np.ndarray) -> np.ndarray:
    """Finds each token's experts: that of the largest logit first, then that of the second largest.

    Args:
        logits: float32 (N, E), of the router.

    Returns:
        Integers (N, 2).
    """
    ...


def weigh(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Computes what the outputs of a token's experts are multiplied by: their probabilities, divided by their sum.

    Args:
        logits: float32 (N, E); probabilities are their softmax; values of 1000 and more must not overflow.
        ids: integers (N, 2), the experts of each token.

    Returns:
        float32 (N, 2); each row adds up to 1.
    """
    ...


def keep(ids: np.ndarray, experts: int, factor: float) -> np.ndarray:
    """Says which choices an expert has room for.

    An expert takes at most ceil(factor * 2 N / E) tokens: 2 N / E if all got the same, times a factor. The first
    choices of all tokens come before the second ones, and among those the tokens in their order.

    Args:
        ids: integers (N, 2), the experts of each token.
        experts: E.
        factor: above 0.

    Returns:
        bool (N, 2): True where the choice is among those that its expert takes.

    Hint: count for each expert how many it has; go through ids[:, 0] first, then through ids[:, 1].
    """
    ...


def balance_loss(probabilities: np.ndarray, ids: np.ndarray) -> float:
    """Computes E * sum over e of f_e P_e, which is 2, the least, where all experts get the same.

    Args:
        probabilities: float32 (N, E), the softmax of the router's logits; P_e is the mean of column e.
        ids: integers (N, 2); f_e is how many choices, first or second, are e, divided by N.
    """
    ...
