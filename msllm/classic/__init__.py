"""Language models before the Transformer: n-grams, word vectors, a feed-forward network and an LSTM."""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "AbsoluteBackoff": "ngram",
        "Alphabet": "characters",
        "KneserNey": "ngram",
        "LSTMConfig": "lstm",
        "LSTMForCausalLM": "lstm",
        "NeuralNGram": "neural_ngram",
        "NeuralNGramConfig": "neural_ngram",
        "SkipGram": "word2vec",
        "WindowTask": "training",
        "bits": "ngram",
        "character_losses": "scoring",
        "cosine_similarity": "onehot",
        "one_hot": "onehot",
        "perplexity": "ngram",
        "random_windows": "characters",
        "read_characters": "characters",
        "sample": "scoring",
        "sliding_windows": "characters",
        "split": "characters",
        "words": "word2vec",
    },
)
