"""The picture of a compile check: how much of each matrix a card has, and what it sends."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from msllm.parallel.auto.check import Check, by_part
from msllm.parallel.auto.graph import PARTS

_WHOLE, _CARD = "#dbe4ee", "#1f5fa8"


def sharding(checks: list[Check], title: str) -> Figure:
    """A row for each stage: on the left one of each kind of matrix, to scale, on the right bytes sent by part."""
    figure = Figure(figsize=(14, 0.8 + 3.4 * len(checks)), dpi=110, layout="constrained")
    panels = figure.subplots(len(checks), 2, width_ratios=(3, 1), squeeze=False)
    for (left, right), check in zip(panels, checks):
        _matrices(left, check)
        _bytes(right, check)
    figure.suptitle(title, fontsize=11)
    return figure


def _matrices(axes, check: Check) -> None:
    kinds = matrices(check)
    tallest = max(rows for _, (rows, _), _ in kinds)
    left, gap = 0.0, 0.06 * sum(columns for _, (_, columns), _ in kinds) / len(kinds)
    for name, (rows, columns), (card_rows, card_columns) in kinds:
        axes.add_patch(Rectangle((left, 0), columns, rows, facecolor=_WHOLE, edgecolor="grey", linewidth=0.6))
        width, height = max(card_columns, columns * 0.012), max(card_rows, tallest * 0.012)
        axes.add_patch(Rectangle((left, rows - height), width, height, facecolor=_CARD))
        share = rows * columns // (card_rows * card_columns)
        axes.text(
            left + columns / 2, -0.03 * tallest, f"{name}\n{rows} x {columns}\n1/{share}", ha="center", va="top",
            fontsize=7,
        )  # fmt: skip
        left += columns + gap
    axes.set_xlim(-gap, left)
    axes.set_ylim(-0.3 * tallest, 1.03 * tallest)
    axes.axis("off")
    total = (check.weight_bytes + check.optimizer_bytes) / 2**30
    axes.set_title(f"stage {check.stage}, card {check.rank}: {total:.2f} GiB of weights and moments", fontsize=9)


def matrices(check: Check) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Returns one of each kind of matrix: its name, whole shape and the card's, both (rows, columns)."""
    found: dict[tuple, tuple] = {}
    for name, shape in check.shapes.items():
        card = check.graph.parameters[name][1]
        if len(shape) == 2:
            short = ".".join(part for part in name.split(".") if not part.isdigit()).removesuffix(".weight")
            found.setdefault((short.split(".", 2)[-1], shape), (shape, card))
    return [(short, shape, card) for (short, _), (shape, card) in found.items()]


def _bytes(axes, check: Check) -> None:
    sent = by_part(check)
    names = [part for part in PARTS if sent[part] >= 2**10]
    values = [sent[name] / 2**20 for name in names]
    bars = axes.barh(names, values, color=_CARD)
    axes.bar_label(bars, [f"{value:,.1f}" for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("MiB sent a step, if rings (estimate)", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
