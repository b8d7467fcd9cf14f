"""The pictures that chapters share."""

from collections.abc import Sequence

import numpy as np


def heat_maps(panels: Sequence[np.ndarray], titles: Sequence[str], rows: Sequence[str], columns: Sequence[str]):
    """Returns a matplotlib Figure of attention weights side by side.

    Args:
        panels: each (rows, columns), 0 to 1: darker is more.
        titles: of the panels.
        rows: a label for each query, from top to bottom.
        columns: a label for each key.
    """
    from matplotlib.figure import Figure

    size = max(3.2, 0.28 * len(columns))
    figure = Figure(figsize=(size * len(panels) + 1, 0.28 * len(rows) + 2), dpi=110, layout="constrained")
    for i, (axes, weights, title) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, titles)):
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(rows)), rows if i == 0 else [""] * len(rows))
        axes.set_title(title, fontsize=10)
    return figure


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
