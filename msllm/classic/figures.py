"""The pictures of how language models came about; each function returns a matplotlib Figure."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

# Up to this many characters of context each has its own point; beyond, neighbours share one.
_CONTEXTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 65)


def by_order(rows: Sequence[Mapping], families: Sequence[str]) -> Figure:
    """Draws bits per character over n, a line for each family, and how many n-grams are stored.

    Args:
        rows: each with name (which begins with the family's), context = n - 1, bits and stored.
    """
    figure, axes = _figure(6.5, 4)
    for family in families:
        mine = [r for r in rows if r["name"].startswith(family)]
        axes.plot([r["context"] + 1 for r in mine], [r["bits"] for r in mine], marker="o", label=family)
    axes.set(xlabel="n", ylabel="bits per held-out character")
    right = axes.twinx()
    right.bar([r["context"] + 1 for r in mine], [r["stored"] / 1e6 for r in mine], color="0.85", width=0.6)
    right.set_ylabel("stored n-grams, millions")
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.legend(loc="upper center")
    return figure


def words(labels: Sequence[str], vectors: np.ndarray) -> Figure:
    """Draws words at the first two principal components of their vectors (N, D)."""
    centred = vectors - vectors.mean(0)
    places = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    figure, axes = _figure(8, 6)
    axes.scatter(*places.T, s=10)
    for label, place in zip(labels, places, strict=True):
        axes.annotate(label, place, xytext=(3, 3), textcoords="offset points", fontsize=9)
    axes.set(xlabel="first principal component", ylabel="second principal component")
    return figure


def bars(rows: Sequence[Mapping]) -> Figure:
    """Draws bits per character of each row, from top to bottom; rows of one ``kind`` share a colour."""
    figure, axes = _figure(8, 0.3 * len(rows) + 1)
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    for i, row in enumerate(rows):
        axes.barh(i, row["bits"], color=f"C{kinds.index(row['kind'])}")
        axes.text(row["bits"] + 0.03, i, f"{row['bits']:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [r["name"] for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("bits per held-out character (less is better)")
    axes.grid(axis="y", visible=False)
    return figure


def by_context(lines: Mapping[str, Sequence[tuple[int, float]]], nets: Mapping[str, Sequence[float]]) -> Figure:
    """Draws bits per character over the characters of context.

    Args:
        lines: for models of fixed context, (context, bits) of each.
        nets: for a model that reads along, the bits of predictions with 1, 2, ... characters before them.
    """
    figure, axes = _figure(7, 4.5)
    for label, points in lines.items():
        axes.plot(*zip(*points), marker="o", label=label)
    for label, found in nets.items():
        spans = [(a, min(b, len(found) + 1)) for a, b in itertools.pairwise(_CONTEXTS) if a <= len(found)]
        means = [np.mean(found[a - 1 : b - 1]) for a, b in spans]
        axes.plot([(a + b - 1) / 2 for a, b in spans], means, marker=".", linestyle="--", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    axes.set(xlabel="characters of context", ylabel="bits per held-out character")
    axes.legend(fontsize=8)
    return figure


def curves(nets: Mapping[str, Sequence[tuple[int, float]]], levels: Mapping[str, float]) -> Figure:
    """Draws bits per character over the characters trained on, and other models' bits as level lines."""
    figure, axes = _figure(7, 4.5)
    for label, points in nets.items():
        axes.plot(*zip(*points), label=label)
    for i, (label, level) in enumerate(levels.items()):
        axes.axhline(level, color="0.4", linestyle=(":", "--")[i % 2], label=label)
    top = max(points[min(2, len(points) - 1)][1] for points in nets.values())
    axes.set_ylim(min(levels.values()) - 0.1, top)
    axes.set_xscale("log")
    axes.set(xlabel="characters seen in training", ylabel="bits per held-out character")
    axes.legend(fontsize=8)
    return figure


def timeline(rows: Sequence[Mapping]) -> Figure:
    """Draws the parameters and training tokens of language models, oldest on top, on logarithmic scales.

    Args:
        rows: each with name, date, kind, parameters and training_tokens; None where a paper does not say.
    """
    figure = Figure(figsize=(11, 0.27 * len(rows) + 1.2), dpi=110, layout="constrained")
    panels = {"parameters": "parameters (Google 5-gram: stored n-grams)", "training_tokens": "training tokens or words"}
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    for axes, (key, label) in zip(figure.subplots(1, 2, sharey=True), panels.items()):
        for i, row in enumerate(rows):
            if row[key] is not None:
                axes.plot([1e6, row[key]], [i, i], color=f"C{kinds.index(row['kind'])}", linewidth=1, alpha=0.5)
                axes.text(row[key] * 1.5, i, _short(row[key]), va="center", fontsize=7)
        for k, kind in enumerate(kinds):
            mine = [i for i, row in enumerate(rows) if row["kind"] == kind and row[key] is not None]
            axes.scatter([rows[i][key] for i in mine], mine, s=25, color=f"C{k}", label=kind)
        axes.set(xscale="log", xlim=(1e6, 5e14), xlabel=label)
        axes.grid(alpha=0.3, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds), fontsize=8)
    figure.axes[0].set_yticks(range(len(rows)), [f"{r['name']}  {r['date']}" for r in rows], fontsize=8)
    axes.invert_yaxis()
    return figure


def _short(number: float) -> str:
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.4g}{letter}"
    return f"{number:.3g}"


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes
