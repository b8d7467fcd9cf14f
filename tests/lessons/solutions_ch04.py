"""Right solutions of chapter 4's exercises, and changes to them that are each a mistake with its message."""

RIGHT = {
    "causal_mask": """
import numpy as np

def causal_mask(T, S):
    query, key = np.arange(S - T, S)[:, None], np.arange(S)[None, :]
    return key <= query

def visible_keys(T, key_mask):
    past = causal_mask(T, key_mask.shape[1])
    return past[None] & (key_mask[:, None, :] == 1)
""",
    "loss_shift": """
import numpy as np

def next_tokens(labels):
    out = np.full_like(labels, -100)
    out[:, :-1] = labels[:, 1:]
    return out

def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

def next_token_loss(logits, labels):
    targets = next_tokens(labels)
    kept = targets != -100
    log_p = log_softmax(logits)
    loss = -np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return float(loss[kept].mean())
""",
    "input_transformations": """
def classification(text, start, extract):
    return [start, *text, extract]

def entailment(premise, hypothesis, start, delimiter, extract):
    return [start, *premise, delimiter, *hypothesis, extract]

def similarity(first, second, start, delimiter, extract):
    tokens = (start, delimiter, extract)
    return [entailment(first, second, *tokens), entailment(second, first, *tokens)]

def multiple_choice(document, question, answers, start, delimiter, extract):
    return [[start, *document, *question, delimiter, *answer, extract] for answer in answers]
""",
}

HELPERS = ""

MEAN = "loss[kept].mean()"
STABLE = "log_softmax(logits)"
NAIVE = "logits - np.log(np.exp(logits).sum(-1, keepdims=True))"
SHIFTED = "    targets = next_tokens(labels)\n"
PAIR = "[start, *premise, delimiter, *hypothesis, extract]"
CHOICE = "[start, *document, *question, delimiter, *answer, extract]"
MASK, KEYS, LABELS, LOSS = (
    ("causal_mask", "causal_mask"),
    ("causal_mask", "visible_keys"),
    ("loss_shift", "next_tokens"),
    ("loss_shift", "next_token_loss"),
)
CLASS, ENTAIL, SIMILAR, CHOOSE = (
    ("input_transformations", name) for name in ("classification", "entailment", "similarity", "multiple_choice")
)

# exercise, function, what is changed, into what, what the message holds
WRONG = [
    (*MASK, "np.arange(S - T, S)", "np.arange(T)", "the queries are the last tokens, not the first"),
    (*MASK, "<=", "<", "does not see its own token"),
    (*MASK, "<=", ">=", "the wrong way round: a query sees the tokens after it"),
    (*MASK, "<=", ">", "False where it may see"),
    (*MASK, "key <= query", "key <= query + 1", "sees one token after it"),
    (*MASK, "np.arange(S - T, S)", "np.arange(T - S, T - S + T)", "the wrong sign"),
    (*MASK, "key <= query", "(key <= query) | True", "a query sees every key"),
    (*MASK, "key <= query", "(key <= query)[None]", "returned shape (1, 4, 4), expected (4, 4)"),
    (*MASK, "key <= query", "(key <= query) * 1", "returned int64, expected bool"),
    (*KEYS, "key_mask[:, None, :] == 1", "key_mask[:, None, :] >= 0", "key_mask is not used"),
    (*KEYS, "past[None] &", "(past[None] | True) &", "a query sees the tokens after it"),
    (*KEYS, "past[None] &", "past[None] |", "& instead of |"),
    (
        *KEYS,
        "(key_mask[:, None, :] == 1)",
        "(key_mask[:, -T:, None] == 1)",
        "padding is hidden as a query, not as a key",
    ),
    (*KEYS, "== 1)", "== 1) & (key_mask[:, -T:, None] == 1)", "as a query too"),
    (*KEYS, "== 1", "== 0", "key_mask is 1 for a token"),
    (*KEYS, "causal_mask(T, key_mask.shape[1])", "np.tri(T, key_mask.shape[1], dtype=bool)", "with a cache"),
    (*LABELS, "out[:, :-1] = labels[:, 1:]", "out[:, 1:] = labels[:, :-1]", "moved to the right"),
    (*LABELS, "out[:, :-1] = labels[:, 1:]", "out[:] = labels", "are not moved"),
    (*LABELS, "return out", "return np.roll(labels, -1, 1)", "np.roll"),
    (*LABELS, "return out", "return labels[:, 1:]", "returned shape (2, 4), expected (2, 5)"),
    (*LABELS, "np.full_like(labels, -100)", "np.zeros_like(labels)", "has 0, which is a token"),
    (*LABELS, "out[:, :-1]", "out[:, -1] = labels[:, -1]; out[:, :-1]", "keeps its label"),
    (*LABELS, "return out", "labels[:, :-1] = labels[:, 1:]; labels[:, -1] = -100; return labels", "itself is changed"),
    (*LOSS, SHIFTED, "    targets = labels\n", "no shift, as for a BERT"),
    (
        *LOSS,
        SHIFTED,
        "    targets = np.full_like(labels, -100); targets[:, 1:] = labels[:, :-1]\n",
        "the wrong way",
    ),
    (*LOSS, MEAN, "(loss * kept)[:, :-1].mean()", "the mean is over all tokens"),
    (*LOSS, MEAN, "(loss * kept).mean()", "the mean is over all positions"),
    (
        *LOSS,
        "np.maximum(targets, 0)[..., None], -1)[..., 0]",
        "targets[..., None], -1)[:, :-1, 0]; kept = loss == loss",
        "the 100th word",
    ),
    (*LOSS, "!= -100", "> 0", "a label of 0 is left out"),
    (*LOSS, MEAN, "((loss * kept).sum(1) / kept.sum(1)).mean()", "each sequence's mean"),
    (*LOSS, MEAN, "(loss * kept).sum()", "the sum; the mean"),
    (*LOSS, STABLE, NAIVE, "exp overflows"),
    (*LOSS, STABLE, "np.log(np.exp(log_softmax(logits)))", "rounded to 0"),
    (*LOSS, "= -np.take", "= np.take", "the sign"),
    (*LOSS, MEAN, "loss[kept].mean() / np.log(2)", "bits"),
    (*LOSS, MEAN, "np.exp(loss[kept].mean())", "the perplexity"),
    (*CLASS, "[start, *text, extract]", "[*text, extract]", "the start token is missing"),
    (*CLASS, "[start, *text, extract]", "[start, *text]", "the extract token is missing"),
    (*CLASS, "[start, *text, extract]", "[extract, *text, start]", "exchanged"),
    (*CLASS, "[start, *text, extract]", "[start, text, extract]", "a list in the list"),
    (*CLASS, "[start, *text, extract]", "[start, extract, *text]", "BERT's [CLS]"),
    (*CLASS, "[start, *text, extract]", "[90, *text, 92]", "are arguments"),
    (*CLASS, "return", "text.append(1); return", "an argument is changed"),
    (*CLASS, "return [start, *text, extract]", "return", "returned nothing"),
    (*ENTAIL, PAIR, "[start, *hypothesis, delimiter, *premise, extract]", "the premise comes first"),
    (*ENTAIL, PAIR, "[start, *premise, *hypothesis, extract]", "the delimiter is missing"),
    (*ENTAIL, PAIR, "[start, *premise, extract, *hypothesis, delimiter]", "delimiter and extract are exchanged"),
    (*ENTAIL, PAIR, "[start, *premise, delimiter, start, *hypothesis, extract]", "a start token of its own"),
    (*ENTAIL, PAIR, "[start, *premise, delimiter, *hypothesis, delimiter, extract]", "a delimiter before extract"),
    (*SIMILAR, "*tokens), entailment(second, first, *tokens)]", "*tokens)]", "one order only: the texts"),
    (*SIMILAR, "entailment(second, first, *tokens)", "entailment(first, second, *tokens)", "the same order twice"),
    (
        *SIMILAR,
        "first, second, *tokens), entailment(second, first",
        "second, first, *tokens), entailment(first, second",
        "with the first text in front comes first",
    ),
    (
        *SIMILAR,
        "[entailment(first, second, *tokens), entailment(second, first, *tokens)]",
        "entailment(first, second, *tokens) + entailment(second, first, *tokens)",
        "one long input",
    ),
    (*CHOOSE, CHOICE, "[start, *document, delimiter, *answer, extract]", "the question is missing"),
    (*CHOOSE, CHOICE, "[start, *document, delimiter, *question, delimiter, *answer, extract]", "between document and"),
    (*CHOOSE, CHOICE, "[start, *document, delimiter, *question, *answer, extract]", "it comes after"),
    (*CHOOSE, CHOICE, "[start, *question, *document, delimiter, *answer, extract]", "before the document"),
    (*CHOOSE, CHOICE, "[start, *answer, delimiter, *document, *question, extract]", "the answer comes first"),
    (*CHOOSE, "in answers]", "in answers[:1]]", "only the first answer"),
    (*CHOOSE, "in answers]", "in answers[::-1]]", "reverse order"),
    (*CHOOSE, CHOICE, "[start, *document, *question, *answer, extract]", "the delimiter is missing"),
]
