"""Right solutions of chapter 1's exercises, and changes to them that are each a mistake with its message."""

RIGHT = {
    "kneser_ney": """
import numpy as np

def continuation_distribution(ids, vocab_size):
    pairs = np.unique(np.stack([ids[:-1], ids[1:]], 1), axis=0)
    counts = np.bincount(pairs[:, 1], minlength=vocab_size)
    return counts / counts.sum()

def bigram_distribution(ids, vocab_size, h, discount):
    lower = continuation_distribution(ids, vocab_size)
    counts = np.bincount(ids[1:][ids[:-1] == h], minlength=vocab_size)
    if counts.sum() == 0:
        return lower
    weight = discount * np.count_nonzero(counts) / counts.sum()
    return np.maximum(counts - discount, 0) / counts.sum() + weight * lower

def perplexity(probabilities):
    return float(np.exp(-np.mean(np.log(probabilities))))
""",
    "skip_gram": """
import numpy as np

def keep_probabilities(counts, t):
    return np.minimum(1, np.sqrt(t / (counts / counts.sum())))

def noise_distribution(counts):
    powers = counts**0.75
    return powers / powers.sum()

def negative_sampling_loss(v, u):
    products = u @ v
    return float(np.logaddexp(0, -products[0]) + np.logaddexp(0, products[1:]).sum())

def gradient_of_v(v, u):
    wrong = 1 / (1 + np.exp(-(u @ v)))
    wrong[0] -= 1
    return wrong @ u
""",
}

HELPERS = ""

# Exercise, function, what is replaced by what, a part of the message.
WRONG = [
    ("kneser_ney", "continuation_distribution", ", 1), axis=0)", ", 1))", "IndexError"),
    (
        "kneser_ney",
        "continuation_distribution",
        "np.unique(np.stack([ids[:-1], ids[1:]], 1), axis=0)",
        "np.stack([ids[:-1], ids[1:]], 1)",
        "a pair counts once",
    ),
    (
        "kneser_ney",
        "continuation_distribution",
        "np.bincount(pairs[:, 1], ",
        "np.bincount(ids, ",
        "each word's share of the text",
    ),
    ("kneser_ney", "continuation_distribution", "pairs[:, 1]", "pairs[:, 0]", "N1+(* w) are those before"),
    ("kneser_ney", "continuation_distribution", "counts / counts.sum()", "counts / vocab_size", "divided by V"),
    (
        "kneser_ney",
        "bigram_distribution",
        "lower = continuation_distribution(ids, vocab_size)",
        "lower = np.bincount(ids, minlength=vocab_size) / len(ids)",
        "it is the continuation distribution",
    ),
    ("kneser_ney", "bigram_distribution", "np.count_nonzero(counts) / ", "1 / ", "a discount for each word seen"),
    ("kneser_ney", "bigram_distribution", "counts - discount, 0", "counts, 0", "nothing is taken"),
    ("kneser_ney", "bigram_distribution", "np.maximum(counts - discount, 0)", "(counts - discount)", "become -D"),
    ("kneser_ney", "bigram_distribution", "return lower", "return lower * 0", "not 0"),
    ("kneser_ney", "bigram_distribution", "return lower", "return lower * 0 + 1 / vocab_size", "not 1 / V"),
    ("kneser_ney", "bigram_distribution", "if counts.sum() == 0:", "if False:", "0 is divided by 0"),
    ("kneser_ney", "bigram_distribution", " + weight * lower", "", "is not added"),
    ("kneser_ney", "bigram_distribution", "counts.sum()", "(ids == h).sum()", "counts the last word too"),
    (
        "kneser_ney",
        "bigram_distribution",
        "/ counts.sum()\n    return np.maximum(counts - discount, 0) / counts.sum()",
        "/ (ids == h).sum()\n    return np.maximum(counts - discount, 0) / (ids == h).sum()",
        "counts the last word too",
    ),
    ("kneser_ney", "perplexity", "np.exp(-", "np.exp(", "the sign"),
    (
        "kneser_ney",
        "perplexity",
        "np.exp(-np.mean(np.log(probabilities)))",
        "-np.mean(np.log(probabilities))",
        "is missing",
    ),
    ("kneser_ney", "perplexity", "np.log(", "np.log2(", "to base 2"),
    ("kneser_ney", "perplexity", "np.exp(-np.mean(np.log(probabilities)))", "-np.mean(np.log2(probabilities))", "bits"),
    (
        "kneser_ney",
        "perplexity",
        "np.exp(-np.mean(np.log(probabilities)))",
        "np.mean(1 / probabilities)",
        "mean of 1 / p",
    ),
    (
        "kneser_ney",
        "perplexity",
        "np.exp(-np.mean(np.log(probabilities)))",
        "1 / np.mean(probabilities)",
        "1 over the mean",
    ),
    (
        "kneser_ney",
        "perplexity",
        "np.exp(-np.mean(np.log(probabilities)))",
        "np.prod(probabilities) ** (-1 / len(probabilities))",
        "rounded to 0",
    ),
    ("kneser_ney", "perplexity", "np.mean(", "np.sum(", "not divided by N"),
    (
        "skip_gram",
        "keep_probabilities",
        "np.minimum(1, np.sqrt(t / (counts / counts.sum())))",
        "np.sqrt(t / (counts / counts.sum()))",
        "at most 1",
    ),
    ("skip_gram", "keep_probabilities", "return ", "return 1 - ", "thrown out"),
    ("skip_gram", "keep_probabilities", "np.sqrt", "", "the root is missing"),
    ("skip_gram", "keep_probabilities", "(counts / counts.sum())", "counts", "not its count"),
    ("skip_gram", "keep_probabilities", "t / (counts / counts.sum())", "counts / counts.sum() / t", "exchanged"),
    ("skip_gram", "noise_distribution", "counts**0.75", "counts", "the power 3/4 is missing"),
    ("skip_gram", "noise_distribution", "counts**0.75", "counts ** (4 / 3)", "the power is 4/3"),
    ("skip_gram", "noise_distribution", "powers / powers.sum()", "powers", "divide by the sum of the powers"),
    ("skip_gram", "noise_distribution", "powers / powers.sum()", "powers / counts.sum() ** 0.75", "divide after"),
    ("skip_gram", "noise_distribution", "powers / powers.sum()", "powers / powers / len(powers)", "as likely"),
    (
        "skip_gram",
        "negative_sampling_loss",
        "np.logaddexp(0, -products[0])",
        "np.log(1 + np.exp(-products[0]))",
        "overflows",
    ),
    ("skip_gram", "negative_sampling_loss", "float(", "-float(", "the sign"),
    ("skip_gram", "negative_sampling_loss", "(0, products[1:])", "(0, -products[1:])", "neighbour's sign"),
    ("skip_gram", "negative_sampling_loss", "u @ v", "-u @ v", "exchanged"),
    ("skip_gram", "negative_sampling_loss", ".sum())", ".sum()) / len(u)", "the terms are added"),
    ("skip_gram", "negative_sampling_loss", " + np.logaddexp(0, products[1:]).sum()", "", "noise words are missing"),
    ("skip_gram", "gradient_of_v", "return ", "return -", "the sign"),
    ("skip_gram", "gradient_of_v", "wrong[0] -= 1", "pass", "s(x) - 1 for row 0"),
    ("skip_gram", "gradient_of_v", "wrong[0] -= 1", "wrong -= 1", "for the noise words too"),
    ("skip_gram", "gradient_of_v", "wrong @ u", "wrong @ u / len(u)", "divided by 1 + K"),
    ("skip_gram", "gradient_of_v", "wrong @ u", "wrong[0] * v", "first row of u"),
]
