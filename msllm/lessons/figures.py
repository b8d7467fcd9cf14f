"""The pictures that chapters share."""

import functools
from collections.abc import Sequence

import numpy as np

# Parts of the names of fonts that have Chinese characters and look well; others that have them come after these.
_CJK_FONTS = ("CJK SC", "Source Han Sans SC", "WenQuanYi", "PingFang", "YaHei", "SimHei", "Heiti", "Hiragino Sans GB")


def heat_maps(
    panels: Sequence[np.ndarray],
    titles: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    across: int | None = None,
):
    """Returns a matplotlib Figure of attention weights side by side.

    Args:
        panels: each (rows, columns), 0 to 1: darker is more.
        titles: of the panels.
        rows: a label for each query, from top to bottom.
        columns: a label for each key.
        across: panels next to each other, further ones come below; all by default.
    """
    from matplotlib.figure import Figure

    across = min(across or len(panels), len(panels))
    down = -(-len(panels) // across)
    (rows, columns), font = _labels(rows, columns)
    size = max(3.2, 0.28 * len(columns))
    figure = Figure(figsize=(size * across + 1, (0.28 * len(rows) + 2) * down), dpi=110, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for i, (axes, weights, title) in enumerate(zip(grid, panels, titles)):
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90, **font)
        axes.set_yticks(range(len(rows)), rows if i % across == 0 else [""] * len(rows), **font)
        axes.set_title(title, fontsize=10)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def surprise_bars(
    tokens: Sequence[str], bits: Sequence[float], entropy: Sequence[float], alternatives: Sequence[Sequence[str]]
):
    """Returns a matplotlib Figure with a bar for each token of a text, from top to bottom: how surprising it was.

    Args:
        tokens: a label for each.
        bits: the length of each bar; NaN where nothing was predicted.
        entropy: the surprise that the model expected, a dot for each.
        alternatives: what the model would have said instead, written beside the bar.
    """
    from matplotlib.figure import Figure

    beside = ["  ".join(row) for row in alternatives]
    (labels, beside), font = _labels(tokens, beside, numbered=(True, False))
    values = np.asarray(bits, float)
    finite = values[np.isfinite(values)]
    longest = max(finite.max(initial=1.0), 1.0)
    lengths = np.where(np.isnan(values), 0.0, np.minimum(values, longest))  # an impossible token has no end
    figure = Figure(figsize=(9, 0.24 * len(labels) + 1.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(labels)), lengths, color="C3", alpha=0.7, label="surprise of the token")
    axes.plot(np.asarray(entropy, float), range(len(labels)), "k.", markersize=4, label="expected surprise (entropy)")
    if len(finite):
        axes.axvline(finite.mean(), color="0.5", linestyle=":", label=f"mean {finite.mean():.2f}")
    for i, text in enumerate(beside):
        # In the coordinates of the axes from left to right, so that the texts form a column.
        axes.text(1.02, i, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, **font)
    axes.set_yticks(range(len(labels)), labels, fontsize=8, **font)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel("bits")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def drawable(texts: Sequence[str]) -> bool:
    """Returns whether the fonts of this machine can draw all characters of some labels; others get a number instead."""
    return _families("".join(texts)) is not None


def _labels(*groups: Sequence[str], numbered: Sequence[bool] = ()):
    """Returns the groups of labels, and the text properties to draw them with.

    Where no font has all their characters, a label is the number of its place, or is left out where not ``numbered``.
    """
    families = _families("".join(text for group in groups for text in group))
    font = {"parse_math": False}  # a dollar sign is a dollar sign
    if families is not None:
        return [list(group) for group in groups], {**font, "fontfamily": families}
    wanted = numbered or [True] * len(groups)
    return [[str(i) if n else "" for i in range(len(group))] for group, n in zip(groups, wanted)], font


def _families(text: str) -> list[str] | None:
    """Returns font families that together have all characters of a text, None where none do."""
    from matplotlib import font_manager

    missing = {ord(c) for c in text} - _characters(font_manager.findfont("DejaVu Sans"))
    families = ["DejaVu Sans"]
    if not missing:
        return families
    known = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    for name in sorted(known, key=lambda name: (not any(part in name for part in _CJK_FONTS), name)):
        if not name.startswith("Last Resort") and missing <= _characters(known[name]):
            return [*families, name]
    return None


@functools.cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def curves(series: dict[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str):
    """Returns a matplotlib Figure of lines; ``series`` maps a label to its x and y values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for label, (x, y) in series.items():
        axes.plot(x, y, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def encoding_picture(encoding_TD: np.ndarray):
    """Returns a matplotlib Figure of positional encodings (T, D), a row a position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(encoding_TD, cmap="RdBu", vmin=-1, vmax=1, aspect="auto"), ax=axes)
    axes.set_xlabel("dimension: sine and cosine in turn, ever slower")
    axes.set_ylabel("position")
    return figure
