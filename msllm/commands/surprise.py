"""msllm surprise: what a language model sees in a text: how surprising each token is, and where it looks."""

import json
import math
import sys
from pathlib import Path

from msllm.errors import UserError

# Bits up to which a token has a colour: the more surprising, the redder.
_COLOURS = ((1, "default"), (3, "black on #fff3d6"), (6, "black on #ffd59e"), (10, "black on #ff9d76"))
_MOST = "white on #d1495b"
_BARS, _MAP = 200, 64  # most tokens of a picture that can still be read
_ACROSS = 4  # heat maps next to each other


def surprise(
    model: str,
    text: str | None = None,
    file: str | None = None,
    top_k: int = 3,
    stride: int | None = None,
    picture: str | None = None,
    attention: str | None = None,
    layer: int = -1,
    heads: int | None = None,
    color: bool = False,
    json_output: bool = False,
) -> None:
    """Shows how surprising each token of a text is to a model, in bits, and what it expected instead.

    On a terminal the text is printed in colours, with its most surprising tokens below; elsewhere a line a token.

    Args:
        model: Hugging Face folder of a GPT-2, LLaMA or another that predicts the next token, or adapter folder.
        text: the text.
        file: a text file; without it and without a text, standard input is read.
        top_k: what the model expected, the most likely tokens of each place.
        stride: tokens between the beginnings of two windows of a text longer than the model's context, by default half
            a context, which is also the most.
        picture: a .png, .svg or .pdf file for a chart: a bar a token, what was expected beside it.
        attention: a .png, .svg or .pdf file for heat maps: how much each token looks at those before it.
        layer: of the attention, counted from 0; -1 is the last.
        heads: of the attention, the first so many; 0 draws all. Without it the first four, or as many as there are.
        color: print in colours also where the output is no terminal.
        json_output: print one JSON object.
    """
    from msllm.models.causal_lm import require_causal
    from msllm.tuning.loading import open_checkpoint

    _check(top_k, heads, {"picture": picture, "attention": attention})
    given = _text(text, file)
    network, tokenizer = open_checkpoint(model)
    require_causal(network, model)
    from msllm.evaluation import surprise as library

    ids = tokenizer.encode(given, add_special_tokens=False)
    found = library.surprise(network, ids, tokenizer.prefix_ids, top_k, stride)
    texts = library.token_texts(tokenizer, ids)
    lost = sum(i == getattr(tokenizer, "unk_token_id", None) for i in ids)
    rows = _rows(tokenizer, found, texts)
    whole = [*tokenizer.prefix_ids, *ids]
    maps = None if attention is None else _maps(network, whole, layer, heads)
    summary = _summary(found, texts)
    if lost:  # what they stand for is not in the texts of the tokens
        summary |= {"bits_per_character": None, "bits_per_byte": None}
    if json_output:
        print(json.dumps({"text": given, **summary, "rows": rows}, ensure_ascii=False))
    else:
        _show(rows, texts, color)
        each = "{bits_per_character:.3f} per character, {bits_per_byte:.3f} per byte"
        if lost:
            each = f"{lost} of them not in the vocabulary, so that characters cannot be counted"
        line = f"{{scored}} of {{tokens}} tokens scored: {{bits_per_token:.3f}} bits per token, {each}; perplexity "
        print((line + "{perplexity:.2f}").format(**summary))
    if picture is not None:
        _draw_bars(rows[:_BARS], len(rows), Path(picture))
    if maps is not None:
        _draw_attention(tokenizer, whole, maps, Path(attention))


def _check(top_k: int, heads: int | None, pictures: dict[str, str | None]) -> None:
    if top_k < 1:
        raise UserError(f"top_k is {top_k}, expected 1 or more; change it")
    if heads is not None and heads < 0:
        raise UserError(f"heads is {heads}, expected 0 (all) or more; change it")
    for name, path in pictures.items():
        if path is not None and Path(path).suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"{name} is {path!r}, expected a name that ends with .png, .svg or .pdf; change it")


def _text(text: str | None, file: str | None) -> str:
    from msllm.files import read_text

    if text is not None and file is not None:
        raise UserError("both --text and --file were given; give one of them")
    name = "--text" if text is not None else file if file is not None else "standard input"
    given = text if text is not None else read_text(file) if file is not None else sys.stdin.read()
    given = given.removesuffix("\n") if text is None else given
    if not given.strip():
        raise UserError(f"{name} is empty; give a text")
    return given


def _summary(found, texts: list[str]) -> dict:
    return {
        "tokens": len(found.ids),
        "scored": int(found.scored.sum()),
        "bits_per_token": found.bits_per_token,
        "bits_per_character": found.bits_per_character(texts),
        "bits_per_byte": found.bits_per_byte(texts),
        "perplexity": found.perplexity,
    }


def _rows(tokenizer, found, texts: list[str]) -> list[dict]:
    """Returns what is told of each token; None where nothing was predicted."""
    names: dict[int, str] = {}

    def name(token: int) -> str:
        if token not in names:
            names[token] = _token_name(tokenizer, token)
        return names[token]

    rows = []
    for i, token in enumerate(found.ids.tolist()):
        row = {"token": visible(texts[i]) or name(token), "id": token, "bits": None, "entropy": None, "rank": None}
        row["expected"] = []
        if found.scored[i]:
            best = zip(found.top_ids[i].tolist(), found.top_probabilities[i].tolist())
            row |= {"bits": float(found.bits[i]), "entropy": float(found.entropy[i]), "rank": int(found.rank[i])}
            row["expected"] = [{"token": name(j), "probability": p} for j, p in best]
        rows.append(row)
    return rows


def _token_name(tokenizer, token: int) -> str:
    """Returns a token by itself as text, or as the vocabulary writes it where it is no whole character."""
    written = tokenizer.id_to_token(token)
    alone = tokenizer.decode_raw([token], skip_special_tokens=False)
    if written is not None and written.startswith("▁") and not alone.startswith(" "):
        alone = " " + alone  # SentencePiece drops the first space
    return visible(alone) if alone and "\ufffd" not in alone else (written or f"id {token}")


def visible(text: str) -> str:
    """Returns a text in which spaces and line ends can be seen."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text.replace(" ", "␣")


def _show(rows: list[dict], texts: list[str], color: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, **({"force_terminal": True, "color_system": "256"} if color else {}))
    if console.color_system is None:
        _table(rows, print)
        return
    line, waiting = Text(), 0.0
    for row, text in zip(rows, texts):
        waiting += row["bits"] or 0.0  # a character of several tokens is as surprising as they are together
        if text:
            line.append(text, style=_style(waiting))
            waiting = 0.0
    console.print(line, soft_wrap=True)
    parts = [(f" up to {bound} ", style) for bound, style in _COLOURS] + [(" more ", _MOST)]
    console.print(Text.assemble("\nbits: ", *parts))
    most = sorted((r for r in rows if r["bits"] is not None), key=lambda r: -r["bits"])[:5]
    _table(most, lambda line: console.print(line, markup=False, soft_wrap=True))


def _style(bits: float) -> str:
    return next((style for bound, style in _COLOURS if bits <= bound), _MOST)


def _table(rows: list[dict], write) -> None:
    from rich.cells import cell_len

    width = min(24, max(cell_len(r["token"]) for r in rows))
    write(f"   bits    rank  {'token':{width}}  expected")
    for r in rows:
        numbers = f"{r['bits']:7.2f} {r['rank']:7}" if r["bits"] is not None else f"{'-':>7} {'-':>7}"
        token = r["token"] + " " * max(0, width - cell_len(r["token"]), 5 - cell_len(r["token"]))
        write(f"{numbers}  {token}  {'  '.join(_expected(r))}".rstrip())


def _expected(row: dict) -> list[str]:
    return [f"{e['token']} {e['probability']:.2f}" for e in row["expected"]]


def _draw_bars(rows: list[dict], tokens: int, path: Path) -> None:
    from msllm.lessons.figures import surprise_bars

    labels, beside = [r["token"] for r in rows], [_expected(r) for r in rows]
    _say_fonts([*labels, *(e for row in beside for e in row)])
    numbers = [[math.nan if r[key] is None else r[key] for r in rows] for key in ("bits", "entropy")]
    _save(surprise_bars(labels, *numbers, beside), path)
    cut = f", the first {len(rows)} of {tokens} tokens" if len(rows) < tokens else ""
    print(f"wrote {path}{cut}", file=sys.stderr)


def _maps(network, ids: list[int], layer: int, heads: int | None) -> dict:
    """Returns the attention (T, T) of each head that was asked for, by its title; T is what fits into a picture."""
    from msllm.evaluation.surprise import attention_maps

    maps = attention_maps(network, ids[: min(_MAP, network.max_length or _MAP)])
    layers, every = maps.shape[:2]
    if not -layers <= layer < layers:
        raise UserError(f"layer is {layer}, expected 0 to {layers - 1}, or -1 for the last; change it")
    heads = min(4, every) if heads is None else heads
    if heads > every:
        raise UserError(f"heads is {heads}, the model has {every}; give 1 to {every}, or 0 for all")
    layer %= layers
    return {f"layer {layer}, head {h}": maps[layer, h] for h in range(heads or every)}


def _draw_attention(tokenizer, ids: list[int], maps: dict, path: Path) -> None:
    from msllm.evaluation.surprise import token_texts
    from msllm.lessons.figures import heat_maps

    shown = ids[: len(next(iter(maps.values())))]
    texts = token_texts(tokenizer, shown)
    labels = [visible(text) or _token_name(tokenizer, i) for text, i in zip(texts, shown)]
    _say_fonts(labels)
    _save(heat_maps(list(maps.values()), list(maps), labels, labels, _ACROSS), path)
    cut = f", the first {len(shown)} of {len(ids)} tokens" if len(shown) < len(ids) else ""
    print(f"wrote {path}{cut}", file=sys.stderr)


def _say_fonts(labels: list[str]) -> None:
    from msllm.lessons.figures import drawable

    if not drawable(labels):
        print(
            "no font here has all characters of the tokens, so their places are numbered in the picture; install a "
            "Chinese one, such as fonts-noto-cjk",
            file=sys.stderr,
        )


def _save(figure, path: Path) -> None:
    from msllm.files import atomic_file

    with atomic_file(path) as tmp:
        figure.savefig(tmp, format=path.suffix.lstrip("."))
