"""Which layout trains a model on so many cards: memory, bytes and time worked out; nothing is built or run."""
