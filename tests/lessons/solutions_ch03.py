"""Right solutions of chapter 3's exercises, and changes to them that are each a mistake with its message."""

RIGHT = {
    "mlm_masking": """
import numpy as np

def mask_tokens(ids, special, mask_id, rng):
    T = len(ids)
    chosen = (rng.random(T) < 0.15) & ~special[ids]
    labels = np.where(chosen, ids, -100)
    fate = rng.random(T)
    masked = ids.copy()
    masked[chosen & (fate < 0.8)] = mask_id
    swapped = chosen & (fate >= 0.8) & (fate < 0.9)
    masked[swapped] = rng.choice(np.flatnonzero(~special), swapped.sum())
    return masked, labels
""",
    "mlm_loss": """
import numpy as np

def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

def mlm_loss(logits, labels):
    kept = labels != -100
    log_p = log_softmax(logits)
    loss = -np.take_along_axis(log_p, np.where(kept, labels, 0)[..., None], axis=-1)[..., 0]
    return float(loss[kept].mean())
""",
}

# What the changes below call.
HELPERS = """
def some(places, share, rng):
    chosen = np.zeros(len(places), bool)
    chosen[rng.permutation(np.flatnonzero(places))[: round(share * places.sum())]] = True
    return chosen
"""

CHOSEN = "(rng.random(T) < 0.15) & ~special[ids]"
RANDOM = "rng.choice(np.flatnonzero(~special), swapped.sum())"

LOG_P = "log_softmax(logits)"
MEAN = "loss[kept].mean()"

# exercise, function, what is changed, into what, what the message holds
MIXED = "fate = rng.random(T)\n    fate = np.where(fate < 0.8, 0.85, np.where(fate < 0.9, 0.1, 0.95))"

WRONG = [
    ("mlm_masking", "mask_tokens", " & ~special[ids]", "", "special tokens are chosen: position"),
    (
        "mlm_masking",
        "mask_tokens",
        "return masked, labels",
        "return np.where(chosen, mask_id, ids), labels",
        "all chosen tokens become [MASK]",
    ),
    ("mlm_masking", "mask_tokens", "chosen & (fate < 0.8)", "chosen", "not the 10% too that stay"),
    ("mlm_masking", "mask_tokens", "& (fate < 0.9)", "& (fate < 0)", "none becomes a random token"),
    ("mlm_masking", "mask_tokens", "fate = rng.random(T)", MIXED, "80% become a random token"),
    ("mlm_masking", "mask_tokens", "fate < 0.9", "fate < 2", "none stays as it is"),
    ("mlm_masking", "mask_tokens", "& (fate < 0.9)", "& (fate < 0.8)", "none becomes a random token"),
    ("mlm_masking", "mask_tokens", "& (fate < 0.9)", "& (rng.random(T) < 0.1)", "of these it is half"),
    ("mlm_masking", "mask_tokens", "fate < 0.8", "fate < 0.1", "80% stay and 10% become [MASK]"),
    ("mlm_masking", "mask_tokens", "fate = rng.random(T)", "fate = 0.8 + rng.random(T) * 0.2", "50% a random token"),
    ("mlm_masking", "mask_tokens", "masked = ids.copy()", "return ids.copy(), labels", "returned as they were"),
    ("mlm_masking", "mask_tokens", "-100)", "0)", "nowhere -100; where no token was chosen they are 0"),
    ("mlm_masking", "mask_tokens", "return masked, labels", "return masked, ids.copy()", "they are the token itself"),
    (
        "mlm_masking",
        "mask_tokens",
        "return masked, labels",
        "return masked, np.where(chosen, masked, -100)",
        "read from the masked",
    ),
    ("mlm_masking", "mask_tokens", "masked = ids.copy()", "masked = ids", "ids itself is changed"),
    ("mlm_masking", "mask_tokens", "swapped = chosen &", "swapped =", "only chosen tokens change"),
    (
        "mlm_masking",
        "mask_tokens",
        "return masked, labels",
        "return masked, np.where(masked != ids, ids, -100)",
        "that stay as they are have no label",
    ),
    (
        "mlm_masking",
        "mask_tokens",
        CHOSEN,
        "some(~special[ids], 0.15 * T / (~special[ids]).sum(), rng)",
        "15% of all tokens",
    ),
    ("mlm_masking", "mask_tokens", "0.15", "0.3", "have a label, right is 15.0%"),
    ("mlm_masking", "mask_tokens", CHOSEN, "~special[ids] & (np.arange(T) < 10)", "is as likely as the others"),
    ("mlm_masking", "mask_tokens", "0.15", "0", "no token was chosen"),
    ("mlm_masking", "mask_tokens", "    T =", "    rng = np.random.default_rng(0)\n    T =", "rng is not used"),
    (
        "mlm_masking",
        "mask_tokens",
        "fate = rng.random(T)",
        "fate = np.random.random(T)",
        "the same seed gives other masks",
    ),
    ("mlm_masking", "mask_tokens", RANDOM, "rng.integers(len(special), size=swapped.sum())", "is the special token"),
    ("mlm_masking", "mask_tokens", RANDOM, "rng.integers(40, 900, size=swapped.sum())", "from 0 to 399"),
    ("mlm_masking", "mask_tokens", RANDOM, "rng.choice(np.flatnonzero(~special))", "the same; draw one for each"),
    (
        "mlm_masking",
        "mask_tokens",
        RANDOM,
        "rng.integers(100, 110, size=swapped.sum())",
        "only 10 different ones of 320",
    ),
    ("mlm_masking", "mask_tokens", "return masked, labels", "return masked", "expected two arrays"),
    ("mlm_masking", "mask_tokens", "return masked, labels", "return masked, labels * 1.0", "labels: of type float64"),
    (
        "mlm_masking",
        "mask_tokens",
        "return masked, labels",
        "return masked[None], labels",
        "shape (1, 68), expected (68,)",
    ),
    ("mlm_masking", "mask_tokens", "    return masked, labels", "", "returned nothing"),
    ("mlm_loss", "mlm_loss", MEAN, "(loss * kept).mean()", "the mean is over all tokens"),
    ("mlm_loss", "mlm_loss", "labels != -100", "labels == labels", "-100 is used as a label"),
    ("mlm_loss", "mlm_loss", "labels != -100", "labels > 0", "a label of 0 is left out"),
    (
        "mlm_loss",
        "mlm_loss",
        "    kept =",
        "    logits, labels = logits[:, :-1], labels[:, 1:]\n    kept =",
        "shifted as for a GPT",
    ),
    ("mlm_loss", "mlm_loss", MEAN, "((loss * kept).sum(1) / kept.sum(1)).mean()", "each sequence's mean"),
    ("mlm_loss", "mlm_loss", MEAN, "(loss * kept).sum()", "the sum; the mean"),
    ("mlm_loss", "mlm_loss", MEAN, "(loss * kept).sum(1).mean()", "the number of sequences"),
    ("mlm_loss", "mlm_loss", LOG_P, "logits - np.log(np.exp(logits).sum(-1, keepdims=True))", "exp overflows"),
    ("mlm_loss", "mlm_loss", LOG_P, "np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))", "exp overflows"),
    ("mlm_loss", "mlm_loss", LOG_P, "np.log(np.exp(log_softmax(logits)))", "rounded to 0"),
    ("mlm_loss", "mlm_loss", "= -np.take", "= np.take", "the sign"),
]
