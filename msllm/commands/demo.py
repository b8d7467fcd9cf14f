def demo() -> None:
    """Trains a small model on the carried instructions and answers held-out ones."""
