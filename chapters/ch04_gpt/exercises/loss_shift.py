"""The loss of a GPT in numpy: each position predicts the token after it, and some tokens are not to be predicted.

Shapes: B sequences, T tokens, V words of the vocabulary. Source: Radford et al. 2018, "Improving Language Understanding
by Generative Pre-Training", section 3.1, equation 1.
"""

import numpy as np


def next_tokens(labels: np.ndarray) -> np.ndarray:
    """Moves labels to where they are predicted: at position t stands the label of the token at t + 1.

    Args:
        labels: int32 (B, T): the ids of the sequence itself, but -100 at what is not to be predicted, such as padding
            or the user's words in a chat; it stays as it is.

    Returns:
        int32 (B, T): the labels one place to the left; -100 at the last position, which has no next token.
    """
    ...


def next_token_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Computes the mean of -log softmax(logits at t)[token at t + 1] over the tokens to predict.

    Args:
        logits: float32 (B, T, V), of each position; values of 1000 and more must not overflow.
        labels: int32 (B, T), as next_tokens takes them (not moved yet); one token or more is to be predicted.

    Returns:
        The mean over the tokens to predict of all sequences together, as one float.

    Hint: after next_tokens, choose the rows: logits[targets != -100] is (N, V). Then the logarithm of softmax as
    x - log(sum(exp(x))), after taking each row's largest value away. A first label that is not -100 is never a target.
    """
    ...
