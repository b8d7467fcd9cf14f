"""The mask of a GPT in numpy: who may see whom, when a text is read at once and when it is continued word by word.

While a GPT writes, the keys and values of earlier tokens are kept in a cache: only the T newest tokens are queries, but
all S tokens are keys, S >= T. The queries are the last T of them.

Shapes: B sentences, T queries, S keys. Source: Radford et al. 2018, section 3.1; Vaswani et al. 2017, section 3.2.3.
"""

import numpy as np


def causal_mask(T: int, S: int) -> np.ndarray:
    """Says which keys each query may look at: its own and those before it.

    Query t is the token at position S - T + t, key s the one at position s.

    Args:
        T, S: numbers of queries and of keys, 1 <= T <= S. Without a cache they are equal; T = 1 is one step of writing.

    Returns:
        bool (T, S): at [t, s], whether query t sees key s.

    Hint: compare the positions of the queries, (T, 1), with those of the keys, (1, S); both come from np.arange.
    """
    ...


def visible_keys(T: int, key_mask: np.ndarray) -> np.ndarray:
    """The same for a batch whose sentences are not of one length: padding is seen by nobody.

    Args:
        T: number of queries, the last T of the S tokens.
        key_mask: int32 (B, S), 1 for a token, 0 for padding; cached tokens count too. Short prompts are padded on
            the left, so that all of them are continued on the right.

    Returns:
        bool (B, T, S): at [b, t, s], whether query t of sentence b sees key s. What a query that is padding itself
        sees is the same rule, which may be nothing.
    """
    ...
