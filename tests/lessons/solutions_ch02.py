"""Right solutions of chapter 2's exercises, and changes to them that are each a mistake with its message."""

RIGHT = {
    "masked_attention": """
import numpy as np

def visible_keys(key_mask):
    T = key_mask.shape[1]
    past = np.arange(T)[None, :] <= np.arange(T)[:, None]
    return past[None] & (key_mask[:, None, :] == 1)

def attention(q, k, v, visible):
    scores = q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5
    scores = np.where(visible, scores, -np.inf)
    scores = scores - scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights @ v
""",
    "positional_encoding": """
import numpy as np

def positional_encoding(length, width):
    angle = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    table = np.zeros((length, width), np.float32)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle)
    return table
""",
    "bpe_merge": """
def count_pairs(words):
    counts = {}
    for word, count in words.items():
        for pair in zip(word, word[1:]):
            counts[pair] = counts.get(pair, 0) + count
    return counts

def most_frequent_pair(counts, ids):
    return min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))

def merge(word, pair):
    out = []
    for token in word:
        out.append(token)
        if tuple(out[-2:]) == pair and not joined(out, pair):
            out[-2:] = [pair[0] + pair[1]]
    return tuple(out)

def joined(out, pair):
    return False
""",
    "label_smoothed_loss": """
import numpy as np

def log_softmax(logits):
    x = logits - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

def label_smoothed_loss(logits, ids, smoothing, padding_id):
    log_p, labels = log_softmax(logits[:, :-1]), ids[:, 1:]
    nll = -np.take_along_axis(log_p, labels[:, :, None], axis=-1)[:, :, 0]
    loss = (1 - smoothing) * nll + smoothing * -log_p.mean(axis=-1)
    kept = labels != padding_id
    return float(loss[kept].mean())
""",
}

# What the changes below call.
HELPERS = """
def apart(word):
    i = 0
    while i + 1 < len(word):
        yield word[i], word[i + 1]
        i += 2 if word[i:i + 2] == word[i + 1:i + 3] else 1

def both(word, pair):
    out, joined = [], False
    for i in range(len(word)):
        here = word[i:i + 2] == pair
        if here:
            out.append(word[i] + word[i + 1])
        elif not joined:
            out.append(word[i])
        joined = here
    return tuple(out)

def from_the_right(word, pair):
    out = list(word)
    i = len(out) - 2
    while i >= 0:
        if tuple(out[i:i + 2]) == pair:
            out[i:i + 2] = [pair[0] + pair[1]]
            i -= 1
        i -= 1
    return tuple(out)
"""

SOFTMAX = """    scores = scores - scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights = weights / weights.sum(axis=-1, keepdims=True)
"""
MEAN = "loss[kept].mean()"
SHIFTED = "log_softmax(logits[:, :-1]), ids[:, 1:]"
CHOOSE = "min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))"

# exercise, function, what is changed, into what, what the message holds
WRONG = [
    ("masked_attention", "visible_keys", "<=", ">=", "a query sees the tokens after it"),
    ("masked_attention", "visible_keys", "<=", "<", "s <= t, not s < t"),
    ("masked_attention", "visible_keys", "return past", "return ~past", "and not itself"),
    (
        "masked_attention",
        "visible_keys",
        "past[None] & (key_mask[:, None, :] == 1)",
        "~(past[None] & (key_mask[:, None, :] == 1))",
        "False where a key may be seen",
    ),
    ("masked_attention", "visible_keys", "== 1", ">= 0", "key_mask is not used"),
    ("masked_attention", "visible_keys", "return past[None] &", "return (past[None] >= 0) &", "only padding is hidden"),
    ("masked_attention", "visible_keys", "key_mask[:, None, :]", "key_mask[:, :, None]", "not as a key"),
    ("masked_attention", "visible_keys", "== 1)", "== 1) & (key_mask[:, :, None] == 1)", "as a query too"),
    ("masked_attention", "visible_keys", "== 1)", "== 1) * 1", "returned int64, expected bool"),
    (
        "masked_attention",
        "visible_keys",
        "past[None] &",
        "past[None, None] &",
        "returned shape (1, 3, 5, 5), expected (3, 5, 5)",
    ),
    ("masked_attention", "attention", " / q.shape[-1] ** 0.5", "", "not divided by sqrt(C)"),
    ("masked_attention", "attention", "** 0.5", "", "divided by C"),
    ("masked_attention", "attention", "/ q.shape", "* q.shape", "multiplied by sqrt(C)"),
    ("masked_attention", "attention", "visible, scores, -np.inf", "visible, -np.inf, scores", "the wrong way round"),
    ("masked_attention", "attention", "visible, scores, -np.inf", "visible, -1e9, scores", "the wrong way round"),
    ("masked_attention", "attention", "axis=-1", "axis=1", "over the queries"),
    ("masked_attention", "attention", "axis=-1", "axis=0", "over the sentences"),
    (
        "masked_attention",
        "attention",
        "-np.inf)\n" + SOFTMAX,
        "-1e9)\n" + SOFTMAX.replace("-1", "1"),
        "over the queries",
    ),
    ("masked_attention", "attention", "-np.inf)\n" + SOFTMAX, "-1e9)\n" + SOFTMAX.replace("-1", "0"), "the sentences"),
    (
        "masked_attention",
        "attention",
        "-np.inf)\n" + SOFTMAX,
        "scores)\n" + SOFTMAX + "    weights = weights * visible\n",
        "comes after softmax",
    ),
    ("masked_attention", "attention", "-np.inf", "0", "whose exp is 1"),
    ("masked_attention", "attention", "-np.inf", "scores", "the mask is not used"),
    ("masked_attention", "attention", "scores - scores.max(axis=-1, keepdims=True)", "scores", "exp overflows"),
    (
        "masked_attention",
        "attention",
        "return weights @ v",
        "return (weights @ v).astype(np.float64)",
        "the values are right, but float64; expected float32",
    ),
    (
        "masked_attention",
        "attention",
        "return weights @ v",
        "return (weights @ v).tolist()",
        "type list, expected a numpy array of shape (2, 5, 8)",
    ),
    ("masked_attention", "attention", "return weights @ v", "weights @ v", "returned nothing"),
    (
        "masked_attention",
        "attention",
        "weights @ v",
        "weights @ q.swapaxes(1, 2)",
        "masked_attention.py, line 15: ValueError: matmul",
    ),
    ("masked_attention", "attention", "attention(q, k, v, visible)", "attention(q, k, v)", "keep the arguments"),
    (
        "positional_encoding",
        "positional_encoding",
        "table[:, 0::2] = np.sin(angle)\n    table[:, 1::2]",
        "table[:, :width // 2] = np.sin(angle)\n    table[:, width // 2:]",
        "all sines stand before all cosines",
    ),
    (
        "positional_encoding",
        "positional_encoding",
        "0::2] = np.sin(angle)\n    table[:, 1::2",
        "1::2] = np.sin(angle)\n    table[:, 0::2",
        "exchanged",
    ),
    (
        "positional_encoding",
        "positional_encoding",
        "np.arange(0, width, 2)",
        "np.arange(width // 2)",
        "i / D for pair i",
    ),
    ("positional_encoding", "positional_encoding", "np.arange(0, width, 2)", "2 * np.arange(0, width, 2)", "4i / D"),
    ("positional_encoding", "positional_encoding", "/ 10000", "* 10000", "its sign"),
    (
        "positional_encoding",
        "positional_encoding",
        "np.cos(angle)",
        "np.cos(np.arange(length)[:, None] / 10000 ** (np.arange(1, width, 2) / width))",
        "different exponents",
    ),
    ("positional_encoding", "positional_encoding", "np.arange(length)", "np.arange(1, length + 1)", "count from 1"),
    ("positional_encoding", "positional_encoding", "10000", "1000", "the base is 1000"),
    (
        "positional_encoding",
        "positional_encoding",
        "return table",
        "return table.T",
        "(8, 12), expected (12, 8) (the axes are swapped)",
    ),
    ("positional_encoding", "positional_encoding", "width), np.float32)", "width))", "but float64; expected float32"),
    ("bpe_merge", "count_pairs", "+ count", "+ 1", "each word counts once"),
    (
        "bpe_merge",
        "count_pairs",
        "for word, count in words.items():",
        "for word, count in [(sum((w * c for w, c in words.items()), ()), 1)]:",
        "over the border",
    ),
    (
        "bpe_merge",
        "count_pairs",
        "for word, count in words.items():",
        "for word, count in [(sum(words, ()), 1)]:",
        "over the border of two words, and each word once",
    ),
    ("bpe_merge", "count_pairs", "zip(word, word[1:])", "set(zip(word, word[1:]))", "a pair counts once a word"),
    ("bpe_merge", "count_pairs", "zip(word, word[1:]):", "apart(word):", "overlapping pairs are counted once"),
    (
        "bpe_merge",
        "count_pairs",
        "zip(word, word[1:])",
        "[tuple(sorted(p)) for p in zip(word, word[1:])]",
        "the order matters",
    ),
    ("bpe_merge", "count_pairs", "return counts", "return list(counts)", "type list, expected a dict"),
    ("bpe_merge", "most_frequent_pair", CHOOSE, "max(counts, key=counts.get)", "takes the pair seen first"),
    ("bpe_merge", "most_frequent_pair", CHOOSE, "sorted(counts, key=counts.get)[-1]", "takes the pair seen last"),
    (
        "bpe_merge",
        "most_frequent_pair",
        CHOOSE,
        "min(counts, key=lambda p: (-counts[p], p))",
        "the first in the alphabet",
    ),
    (
        "bpe_merge",
        "most_frequent_pair",
        CHOOSE,
        "max(counts, key=lambda p: (counts[p], p))",
        "the last in the alphabet",
    ),
    (
        "bpe_merge",
        "most_frequent_pair",
        CHOOSE,
        "max(counts, key=lambda p: (counts[p], ids[p[0]], ids[p[1]]))",
        "takes the largest",
    ),
    ("bpe_merge", "most_frequent_pair", ", ids[pair[1]]", "", "the first token only"),
    (
        "bpe_merge",
        "most_frequent_pair",
        "ids[pair[0]], ids[pair[1]]",
        "ids[pair[1]], ids[pair[0]]",
        "looks at the second first",
    ),
    ("bpe_merge", "most_frequent_pair", CHOOSE, "min(counts, key=counts.get)", "the rarest"),
    ("bpe_merge", "most_frequent_pair", CHOOSE, "max(counts.values())", "type int, expected ('b', 'c')"),
    (
        "bpe_merge",
        "merge",
        "return tuple(out)",
        "return tuple(' '.join(word).replace(' '.join(pair), ''.join(pair)).split())",
        "not tokens",
    ),
    ("bpe_merge", "merge", "return False", "return ''.join(pair) in out", "only the first place"),
    ("bpe_merge", "merge", "return tuple(out)", "return from_the_right(word, pair)", "goes from the left"),
    ("bpe_merge", "merge", "return tuple(out)", "return both(word, pair)", "overlapping pairs are both joined"),
    ("bpe_merge", "merge", "== pair", "in (pair, pair[::-1])", "the reverse of the pair"),
    ("bpe_merge", "merge", "return tuple(out)", "return word", "nothing is joined"),
    ("label_smoothed_loss", "log_softmax", "logits - logits.max(axis=-1, keepdims=True)", "logits", "exp overflows"),
    (
        "label_smoothed_loss",
        "log_softmax",
        "return x - np.log(np.exp(x)",
        "return np.log(np.exp(x) / np.exp(x)",
        "rounded to 0",
    ),
    (
        "label_smoothed_loss",
        "log_softmax",
        "return x - np.log(np.exp(x)",
        "return (np.exp(x) / np.exp(x)",
        "the logarithm is missing",
    ),
    ("label_smoothed_loss", "log_softmax", "axis=-1", "axis=0", "the classes are the last"),
    ("label_smoothed_loss", "log_softmax", "return x - np.log(", "return x / np.log(2) - np.log2(", "base 2"),
    ("label_smoothed_loss", "log_softmax", "return x - np.log(", "return x / np.log(10) - np.log10(", "base 10"),
    ("label_smoothed_loss", "label_smoothed_loss", SHIFTED, "log_softmax(logits), ids", "no shift"),
    ("label_smoothed_loss", "label_smoothed_loss", SHIFTED, "log_softmax(logits[:, 1:]), ids[:, :-1]", "the wrong way"),
    ("label_smoothed_loss", "label_smoothed_loss", MEAN, "(loss * kept).mean()", "over padding too"),
    ("label_smoothed_loss", "label_smoothed_loss", MEAN, "loss.mean()", "not left out"),
    ("label_smoothed_loss", "label_smoothed_loss", "!= padding_id", "!= 0", "padding is not always 0"),
    ("label_smoothed_loss", "label_smoothed_loss", "!= padding_id", "> 0", "padding is not always 0"),
    (
        "label_smoothed_loss",
        "label_smoothed_loss",
        MEAN,
        "((loss * kept).sum(1) / kept.sum(1)).mean()",
        "each sentence's mean",
    ),
    ("label_smoothed_loss", "label_smoothed_loss", MEAN, "loss[kept].sum()", "the sum; the mean"),
    (
        "label_smoothed_loss",
        "label_smoothed_loss",
        "(1 - smoothing) * nll + smoothing * -log_p.mean(axis=-1)",
        "nll",
        "no label smoothing",
    ),
    (
        "label_smoothed_loss",
        "label_smoothed_loss",
        "-log_p.mean(axis=-1)",
        "(-log_p.sum(-1) - nll) / (log_p.shape[-1] - 1)",
        "spread over the V - 1",
    ),
    ("label_smoothed_loss", "label_smoothed_loss", "log_p.mean(", "log_p.sum(", "not e / V"),
    (
        "label_smoothed_loss",
        "label_smoothed_loss",
        "log_softmax(logits[:, :-1])",
        "np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[:, :-1]",
        "exp overflows",
    ),
    (
        "label_smoothed_loss",
        "label_smoothed_loss",
        "log_softmax(logits[:, :-1])",
        "np.log(np.exp(log_softmax(logits)))[:, :-1]",
        "rounded to 0; use log_softmax",
    ),
    ("label_smoothed_loss", "label_smoothed_loss", "return float(", "return -float(", "the sign"),
    ("label_smoothed_loss", "label_smoothed_loss", "float(loss[kept].mean())", "loss[kept]", "expected one number"),
]
