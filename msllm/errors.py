"""The one exception that a user's mistake raises, and the helpers that word it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: the command line prints it as one line and exits with code 2.

    The message names the wrong value, what was expected and the next step.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the closest of ``options``, or "" when none is close."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
