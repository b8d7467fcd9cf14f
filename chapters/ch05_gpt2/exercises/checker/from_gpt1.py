"""Checks from_gpt1.py against the blocks of msllm's GPT-2; the variants in numpy are wrong on purpose."""

import functools

import numpy as np

from msllm.lessons.checking import Task, against

D, T = 8, 5


class Layer:
    """A cell of msllm as a function of numpy arrays (T, D)."""

    def __init__(self, name: str, cell, rest: tuple = ()):
        self.name, self.cell, self.rest = name, cell, rest

    def __call__(self, x):
        from mindspore import Tensor

        return self.cell(Tensor(np.ascontiguousarray(x, np.float32)[None]), *self.rest).asnumpy()[0]

    def __repr__(self):
        return self.name

    def __deepcopy__(self, memo):
        return self


@functools.cache
def model():
    """A GPT-2 of three blocks with weights, biases and norms of all sizes."""
    from mindspore import Tensor

    from msllm.models.gpt2 import GPT2Config, GPT2Model

    body = GPT2Model(GPT2Config(vocab_size=11, n_positions=T, n_embd=D, n_layer=3, n_head=2))
    rng = np.random.default_rng(0)
    for name, parameter in body.parameters_and_names():
        centre = float(".ln_" in f".{name}" and name.endswith("weight"))
        parameter.set_data(Tensor((centre + 0.5 * rng.standard_normal(parameter.shape)).astype(np.float32)))
    return body.set_train(False)


def layers(i: int) -> tuple[Layer, ...]:
    block = model().h[i]
    cells = {"attention": block.attn, "norm_1": block.ln_1, "mlp": block.mlp, "norm_2": block.ln_2}
    return tuple(Layer(n, cell, (None,) * 3 if n == "attention" else ()) for n, cell in cells.items())


def _x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((T, D)).astype(np.float32)


def block_cases():
    return [(_x(), *layers(0)), (_x() * np.float32(3), *layers(1))]


def gpt2_block(x, attention, norm_1, mlp, norm_2):
    """The library's block that these cells belong to."""
    from mindspore import Tensor

    block = next(b for b in model().h if b.attn is attention.cell)
    return sum(part.asnumpy()[0] for part in block(Tensor(x[None]), None, None, None, None))


def _pre(x, attention, norm_1, mlp, norm_2):
    x = x + attention(norm_1(x))
    return x + mlp(norm_2(x))


def _post(x, attention, norm_1, mlp, norm_2):
    x = norm_1(x + attention(x))
    return norm_2(x + mlp(x))


def _without_residual(x, attention, norm_1, mlp, norm_2):
    return mlp(norm_2(attention(norm_1(x))))


def _normed_residual(x, attention, norm_1, mlp, norm_2):
    x = norm_1(x)
    x = norm_2(x + attention(x))
    return x + mlp(x)


def _behind(x, attention, norm_1, mlp, norm_2):
    x = x + norm_1(attention(x))
    return x + norm_2(mlp(x))


def _parallel(x, attention, norm_1, mlp, norm_2):
    return x + attention(norm_1(x)) + mlp(norm_2(x))


def _half(x, attention, norm_1, mlp, norm_2):
    x = x + attention(norm_1(x))
    return norm_2(x + mlp(x))


def _swapped(x, attention, norm_1, mlp, norm_2):
    return _pre(x, attention, norm_2, mlp, norm_1)


def _same_norm(x, attention, norm_1, mlp, norm_2):
    return _pre(x, attention, norm_1, mlp, norm_1)


def _mlp_first(x, attention, norm_1, mlp, norm_2):
    return _pre(x, mlp, norm_2, attention, norm_1)


def _first_lost(x, attention, norm_1, mlp, norm_2):
    return x + mlp(norm_2(x + attention(norm_1(x))))


def _no_norm(x, attention, norm_1, mlp, norm_2):
    x = x + attention(x)
    return x + mlp(x)


BLOCK_MISTAKES = [
    ("this is still GPT-1: the norm comes after the sum; in GPT-2 attention reads norm_1(x), mlp norm_2(x)", _post),
    ("the residuals are missing: x + attention(...), then x + mlp(...)", _without_residual),
    ("what is added to is normed too: x + attention(norm_1(x)), with x as it is", _normed_residual),
    ("the norm is of what a layer gives; it is of what it reads", _behind),
    ("mlp reads x as it was before attention: this is GPT-J's parallel block", _parallel),
    ("attention is pre-norm, mlp is still post-norm", _half),
    ("norm_1 and norm_2 are exchanged", _swapped),
    ("norm_1 is used twice; mlp has norm_2", _same_norm),
    ("mlp comes before attention", _mlp_first),
    ("the second sum adds to the block's input: what attention found is lost", _first_lost),
    ("no norm is used", _no_norm),
]


def body_cases():
    """Three blocks, and one."""
    norm = Layer("final_norm", model().ln_f)
    return [(_x(), [layers(i) for i in range(3)], norm), (_x(), [layers(1)], norm)]


def gpt2_body(x, blocks, final_norm):
    for block in blocks:
        x = gpt2_block(x, *block)
    return final_norm(x)


def _body(x, blocks, final_norm, block=_pre, start=False, each=False, end=True, order=1):
    x = final_norm(x) if start else x
    for one in list(blocks)[::order]:
        x = block(x, *one)
        x = final_norm(x) if each else x
    return final_norm(x) if end else x


def _wrong(**how):
    return lambda *args: _body(*args, **how)


BODY_MISTAKES = [
    ("the final norm is missing: no block of GPT-2 ends with one", _wrong(end=False)),
    ("final_norm comes after each block; only after the last", _wrong(each=True, end=False)),
    ("final_norm comes before the blocks; after the last", _wrong(start=True, end=False)),
    ("final_norm comes before the blocks too", _wrong(start=True)),
    ("final_norm comes twice at the end", _wrong(each=True)),
    ("the blocks are GPT-1's: call gpt2_block", _wrong(block=_post)),
    ("the blocks are GPT-1's, and the final norm is missing", _wrong(block=_post, end=False)),
    ("the blocks run backwards", _wrong(order=-1)),
    ("only the last block counts: each reads what the one before gave", lambda x, b, n: _body(x, b[-1:], n)),
    ("only the first block is run", lambda x, b, n: _body(x, b[:1], n)),
]

NAMES = ["wte", "wpe", *(f"h.{{}}.{n}" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))]


def std_cases():
    """Every kind of weight, in the first and in the last block, of models of three depths."""
    return [(f"{name.format(i)}.weight", n) for n in (2, 12, 48) for name in NAMES for i in (0, n - 1)]


@functools.cache
def _initial(n_layer: int) -> dict[str, float]:
    from msllm.layers import no_initial_values
    from msllm.models.gpt2 import GPT2Config, GPT2Model

    with no_initial_values():
        body = GPT2Model(GPT2Config(vocab_size=2, n_positions=1, n_embd=1, n_layer=n_layer, n_head=1))
    return {name: parameter.init for name, parameter in body.parameters_and_names()}


def initial_std(name, n_layer):
    return _initial(n_layer)[name]


def _std(name, n_layer, ends=("c_proj.weight",), layers=2, power=-0.5):
    return 0.02 * ((layers * n_layer) ** power if name.endswith(ends) else 1.0)


def _wrong_std(**how):
    return lambda *args: _std(*args, **how)


def _by_depth(name, n_layer):
    """Smaller the deeper the block is."""
    if not name.endswith("c_proj.weight"):
        return 0.02
    return 0.02 * (2 * (int(name.split(".")[1]) + 1)) ** -0.5


EVERY = ("c_proj.weight", "c_attn.weight", "c_fc.weight")
STD_MISTAKES = [
    ("every weight starts with 0.02; c_proj of attn and of mlp are smaller", _wrong_std(ends=())),
    ("N is the number of residual layers, two of each block", _wrong_std(layers=1)),
    ("the factor is 1 / sqrt(N), not 1 / N", _wrong_std(power=-1)),
    ("the factor is 1 / sqrt(N), not sqrt(N)", _wrong_std(power=0.5)),
    ("mlp.c_proj writes into the residual stream too", _wrong_std(ends=("attn.c_proj.weight",))),
    ("attn.c_proj writes into the residual stream too", _wrong_std(ends=("mlp.c_proj.weight",))),
    ("c_attn and c_fc only read the residual stream: 0.02", _wrong_std(ends=EVERY)),
    ("the embeddings are no residual layer: 0.02", _wrong_std(ends=(*EVERY, "wte.weight", "wpe.weight"))),
    ("the embeddings are no residual layer: 0.02", _wrong_std(ends=("c_proj.weight", "wte.weight", "wpe.weight"))),
    ("N is that of the whole model, not of the blocks up to here", _by_depth),
]


TASKS = (
    Task("gpt2_block", against(gpt2_block, block_cases, BLOCK_MISTAKES)),
    Task("gpt2_body", against(gpt2_body, body_cases, BODY_MISTAKES)),
    Task("initial_std", against(initial_std, std_cases, STD_MISTAKES)),
)
