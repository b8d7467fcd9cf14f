"""The loss of BERT's masked language model in numpy: cross-entropy at the chosen tokens, and at no others.

Shapes: B sequences, T tokens, V words of the vocabulary. Source: Devlin et al. 2019, "BERT", section 3.1 and
appendix A.1.
"""

import numpy as np


def mlm_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Computes the mean of -log softmax(logits)[label] over the tokens that have a label.

    BERT sees the whole sequence at once: the logits at position t are for the token at position t itself.

    Args:
        logits: float32 (B, T, V); values of 1000 and more must not overflow.
        labels: int32 (B, T), the token that was there before masking, -100 where none was chosen; one has a label.

    Returns:
        The mean over the labels of all sequences together, as one float.

    Hint: choose the rows first, logits[labels != -100] is (N, V). Then the logarithm of softmax as
    x - log(sum(exp(x))), after taking each row's largest value away.
    """
    ...
