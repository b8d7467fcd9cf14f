"""Right solutions of chapter 5's exercises, and changes to them that are each a mistake with its message."""

from msllm.lessons import find_chapter

# What the twelve MASKs of masked_gpt2.py stand for, in the order of the file.
ANSWERS = [
    "x_BTD.reshape(B, T, H, C).swapaxes(1, 2)",
    "C**-0.5",
    "key <= query",
    "ops.softmax(scores, -1)",
    "x_BHTC.swapaxes(1, 2).reshape(B, T, H * C)",
    "math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)",
    "self.ln_1(x)",
    "x + self.mlp(self.ln_2(x))",
    "ops.arange(T)",
    "self.wte(input_ids) + self.wpe(position_ids)",
    "self.ln_f(x)",
    "self.transformer.wte.weight",
]


def filled(answers=ANSWERS) -> str:
    """Returns masked_gpt2.py with the answers in place of the MASKs of its code."""
    source = (find_chapter("5").folder / "exercises" / "masked_gpt2.py").read_text(encoding="utf-8")
    start = source.index("\nclass Linear")
    first, *rest = source[start:].split("MASK")
    assert len(rest) == len(answers)
    return source[:start] + first + "".join(a + part for a, part in zip(answers, rest))


RIGHT = {
    "top_p": """
import numpy as np

def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()

def keep_top_p(logits, p):
    order = np.argsort(-logits)
    mass = softmax(logits)[order]
    before = np.cumsum(mass) - mass
    kept = np.full_like(logits, -np.inf)
    kept[order[before < p]] = logits[order[before < p]]
    return kept
""",
    "from_gpt1": """
def gpt1_block(x, attention, norm_1, mlp, norm_2):
    x = norm_1(x + attention(x))
    return norm_2(x + mlp(x))

def gpt2_block(x, attention, norm_1, mlp, norm_2):
    x = x + attention(norm_1(x))
    return x + mlp(norm_2(x))

def gpt2_body(x, blocks, final_norm):
    for block in blocks:
        x = gpt2_block(x, *block)
    return final_norm(x)

def initial_std(name, n_layer):
    return 0.02 / (2 * n_layer) ** 0.5 if name.endswith("c_proj.weight") else 0.02
""",
    "masked_gpt2": filled(),
}

HELPERS = ""

SOFTMAX, TOP_P = ("top_p", "softmax"), ("top_p", "keep_top_p")
BLOCK, BODY, STD = (("from_gpt1", name) for name in ("gpt2_block", "gpt2_body", "initial_std"))
FIRST, SECOND = "x = x + attention(norm_1(x))", "return x + mlp(norm_2(x))"
CHOSEN = "    kept[order[before < p]] = logits[order[before < p]]\n"
BEST = "    kept[logits.argmax()] = logits.max()\n"
ENDS = 'name.endswith("c_proj.weight")'
MASKED = ("masked_gpt2", "run")
SPLIT, SCALE, PAST, WEIGHTS, MERGE, GELU, NORM, RESIDUAL, PLACES, SUM, FINAL, HEAD = ANSWERS
ROOT = "math.sqrt(2 / math.pi)"

# exercise, function, what is changed, into what, what the message holds
WRONG = [
    (*SOFTMAX, " - logits.max()", "", "exp overflows"),
    (*SOFTMAX, " / weights.sum()", "", "divide by their sum"),
    (*SOFTMAX, "np.exp(", "np.exp2(", "those of e"),
    (*SOFTMAX, "return weights", "return np.log(weights / weights.sum()) if 1 else weights", "the logarithm"),
    (*SOFTMAX, "np.exp(logits - logits.max())", "np.exp(logits.min() - logits)", "the signs"),
    (*TOP_P, "before < p", "before + mass <= p", "the token with which the sum reaches p"),
    (*TOP_P, CHOSEN, CHOSEN.replace("before", "before + mass") + BEST, "the token with which the sum reaches p"),
    (*TOP_P, "np.argsort(-logits)", "np.argsort(logits)", "order them by -logits"),
    (*TOP_P, "np.argsort(-logits)", "np.arange(len(logits))", "not ordered"),
    (*TOP_P, CHOSEN, "    kept[before < p] = logits[before < p]\n", "kept[order[...]]"),
    (*TOP_P, CHOSEN, "    kept = np.where(softmax(logits) >= p, logits, -np.inf)\n", "it is their sum"),
    (*TOP_P, "softmax(logits)[order]", "logits[order]", "the sum is of logits"),
    (*TOP_P, "np.full_like(logits, -np.inf)", "np.zeros_like(logits)", "a logit of 0 is still"),
    (*TOP_P, "return kept", "return softmax(kept)", "the logits are asked for"),
    (*TOP_P, "before < p", "np.append(0, before[:-1]) < p", "one token more"),
    (*TOP_P, "return kept", "logits[:] = kept; return logits", "logits itself is changed"),
    (*BLOCK, f"{FIRST}\n    {SECOND}", "return gpt1_block(x, attention, norm_1, mlp, norm_2)", "still GPT-1"),
    (*BLOCK, SECOND, "return norm_2(x + mlp(x))", "mlp is still post-norm"),
    (*BLOCK, f"{FIRST}\n    {SECOND}", "return mlp(norm_2(attention(norm_1(x))))", "the residuals are missing"),
    (*BLOCK, f"{FIRST}\n    {SECOND}", "x = x + norm_1(attention(x))\n    return x + norm_2(mlp(x))", "what it reads"),
    (*BLOCK, FIRST, "x = norm_1(x)\n    x = norm_2(x + attention(x))\n    return x + mlp(x)", "normed too"),
    (*BLOCK, FIRST, "return x + attention(norm_1(x)) + mlp(norm_2(x))", "parallel"),
    (*BLOCK, FIRST, "return x + mlp(norm_2(x + attention(norm_1(x))))", "what attention found is lost"),
    (*BLOCK, FIRST, "norm_1, norm_2 = norm_2, norm_1\n    x = x + attention(norm_1(x))", "are exchanged"),
    (*BLOCK, SECOND, "return x + mlp(norm_1(x))", "used twice"),
    (*BLOCK, FIRST, "x = x + mlp(norm_2(x))\n    return x + attention(norm_1(x))", "mlp comes before attention"),
    (*BLOCK, FIRST, "x = x + attention(x)\n    return x + mlp(x)", "no norm is used"),
    (*BODY, "return final_norm(x)", "return x", "the final norm is missing"),
    (
        *BODY,
        "= gpt2_block(x, *block)\n    return final_norm(x)",
        "= final_norm(gpt2_block(x, *block))\n    return x",
        "after each",
    ),
    (*BODY, "    for block", "    x = final_norm(x)\n    for block", "before the blocks too"),
    (*BODY, "gpt2_block", "gpt1_block", "are GPT-1's"),
    (*BODY, "in blocks", "in blocks[::-1]", "backwards"),
    (*BODY, "in blocks", "in blocks[-1:]", "only the last block"),
    (*BODY, "in blocks", "in blocks[:1]", "only the first block"),
    (*STD, ENDS, "0", "every weight starts with 0.02"),
    (*STD, "(2 * n_layer)", "n_layer", "two of each block"),
    (*STD, " ** 0.5", "", "not 1 / N"),
    (*STD, "0.02 / (2 * n_layer)", "0.02 * (2 * n_layer)", "not sqrt(N)"),
    (*STD, "c_proj.weight", "attn.c_proj.weight", "mlp.c_proj writes"),
    (*STD, "c_proj.weight", "mlp.c_proj.weight", "attn.c_proj writes"),
    (*STD, ENDS, 'name.startswith("h.")', "only read the residual stream"),
    (*STD, ENDS, "1", "the embeddings are no residual layer"),
    (*MASKED, SPLIT, "x_BTD.reshape(B, H, T, C)", "split_heads, the queries is off: 96 of 120 values are wrong"),
    (*MASKED, SPLIT, "x_BTD.reshape(B, H, T, C)", "at once, which tears tokens apart"),
    (*MASKED, SPLIT, "x_BTD.reshape(B, T, H, C)", "returned shape (2, 5, 3, 4), expected (2, 3, 5, 4)"),
    (*MASKED, SPLIT, "x_BTD.reshape(B, T, C, H).transpose(0, 3, 1, 2)", "it is H times C"),
    (*MASKED, SCALE, "1.0", "h.0.attn.weights is off: 83 of 150 values"),
    (*MASKED, SCALE, "1.0", "the scores are not scaled"),
    (*MASKED, SCALE, "1 / C", "not 1 / C"),
    (*MASKED, SCALE, "C**0.5", "not multiplied"),
    (*MASKED, SCALE, "(C * self.heads) ** -0.5", "not the whole width D"),
    (*MASKED, PAST, "key >= query", "a query sees the keys after it"),
    (*MASKED, PAST, "key > query", "a query sees the keys after it, and not itself"),
    (*MASKED, PAST, "key < query", "does not see itself"),
    (*MASKED, PAST, "ops.ones((T, T), ms.bool_)", "every query sees every key"),
    (*MASKED, WEIGHTS, "ops.softmax(scores, 2)", "softmax is over the queries"),
    (*MASKED, WEIGHTS, "ops.softmax(scores, 1)", "softmax is over the heads"),
    (*MASKED, WEIGHTS, "scores", "softmax makes weights of them"),
    (*MASKED, MERGE, "x_BHTC.reshape(B, T, H * C)", "h.0.attn.merge_heads is off"),
    (*MASKED, MERGE, "x_BHTC.reshape(B, T, H * C)", "torn apart"),
    (*MASKED, MERGE, "x_BHTC.transpose(0, 2, 3, 1).reshape(B, T, H * C)", "H then C"),
    (*MASKED, MERGE, "x_BHTC", "returned shape (2, 3, 5, 4), expected (2, 5, 12)"),
    (*MASKED, GELU, "x + 0.044715 * x**3", "sqrt(2 / pi) is missing"),
    (*MASKED, GELU, f"{ROOT} * x", "the cube of x is missing"),
    (*MASKED, GELU, f"{ROOT} * (x + 0.044715 * x**2)", "not its square"),
    (*MASKED, GELU, f"{ROOT} * x + 0.044715 * x**3", "brackets"),
    (*MASKED, GELU, f"2 * {GELU}", "the factor 2 is there already"),
    (*MASKED, NORM, "x", "h.0.ln_1 is not called where it should be likely mistake: attention reads x as it is"),
    (*MASKED, f"x = x + self.attn({NORM})", "x = self.ln_1(x + self.attn(x))", "attention reads x as it is"),
    (*MASKED, NORM, "self.ln_2(x)", "h.0.ln_1 is not called"),
    (*MASKED, f"x + self.attn({NORM})", f"self.attn({NORM})", "ln_2 reads attention alone"),
    (*MASKED, RESIDUAL, "self.mlp(self.ln_2(x))", "h.0 is off"),
    (*MASKED, RESIDUAL, "self.mlp(self.ln_2(x))", "the residual is missing"),
    (*MASKED, RESIDUAL, "self.ln_2(x + self.mlp(x))", "mlp reads x as it is"),
    (*MASKED, RESIDUAL, "x + self.mlp(x)", "mlp reads x as it is"),
    (*MASKED, RESIDUAL, "self.ln_2(x) + self.mlp(self.ln_2(x))", "what went into ln_2, not what came out"),
    (*MASKED, PLACES, "(ops.arange(T) + 1)", "positions count from 0"),
    (*MASKED, PLACES, "ops.zeros((T,), ms.int32)", "every token has position 0"),
    (*MASKED, PLACES, "input_ids", "RuntimeError: For 'Gather'"),
    (*MASKED, SUM, "self.wte(input_ids)", "the positions are not added"),
    (*MASKED, SUM, "self.wte(input_ids) * self.wpe(position_ids)", "they are added"),
    (*MASKED, FINAL, "x", "without the final norm"),
    (*MASKED, HEAD, "self.transformer.wpe.weight", "logits is off: returned shape (2, 5, 8), expected (2, 5, 17)"),
    (*MASKED, HEAD, "zeros(17, 12)", "logits is off: 170 of 170"),
    (
        *MASKED,
        "self.transformer = GPT2Model(config)",
        "self.transformer = GPT2Model(config); self.lm_head = zeros(17, 12)",
        "its head is tied",
    ),
    (
        *MASKED,
        "self.ln_f = LayerNorm(",
        "self.norm = LayerNorm(",
        "there is no parameter transformer.ln_f.bias any more",
    ),
    (*MASKED, "    prepare(model)\n", "", "leave run() as it is"),
    (*MASKED, MERGE, "x_BHTC.nothing()", "right so far: 7 tensors, the last is h.0.attn.weights"),
]
