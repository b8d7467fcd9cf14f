"""Ctrl-C and SIGTERM at times when they can be taken."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def wait() -> Iterator[None]:
    """They arrive after the block: one that falls into MindSpore's native code, or its import, now and then ends in a
    crash. Threads that start inside never get them: they are the main thread's business, where Python expects them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
