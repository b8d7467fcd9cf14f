"""The pictures of this chapter, drawn from what its runs measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from msllm.parallel.schedule import FORWARD
from msllm.parallel.slices import Slice

LOOK = {"dpi": 110, "layout": "constrained"}
MIB = 2**20


def wire(rows: Sequence[dict], workers: int) -> Figure:
    """A bar for each row of msllm parallel verify: bytes that the busiest worker sends per step, and the formula's."""
    figure = Figure(figsize=(8, 0.27 * len(rows) + 1.4), **LOOK)
    axes, places = figure.subplots(), np.arange(len(rows))
    axes.barh(places, [row["sent"] / 1024 for row in rows], color="tab:blue", alpha=0.75, label="counted")
    axes.plot([row["formula"] / 1024 for row in rows], places, "k|", markersize=11, markeredgewidth=2, label="formula")
    axes.set_yticks(places, [f"{row['strategy']}, {row['family']} ({row['layout']})" for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"KiB that the busiest of {workers} workers sends per step")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    return figure


def gantt(summaries: Sequence[dict]) -> Figure:
    """The passes of one step of each schedule: a row a stage; blue forward, orange backward; darker a later chunk."""
    figure = Figure(figsize=(11, 1.9 * len(summaries) + 0.6), **LOOK)
    panels = figure.subplots(len(summaries), 1, sharex=True, squeeze=False)[:, 0]
    for axes, one in zip(panels, summaries):
        start = min(passes[0][3] for passes in one["passes"])
        for stage, passes in enumerate(one["passes"]):
            for kind, chunk, micro_batch, first, last in passes:
                left, width = 1000 * (first - start), 1000 * (last - first)
                colour = ("#8ec1e8", "#3f7fb5") if kind == FORWARD else ("#f9c58d", "#d9822b")
                axes.barh(
                    stage, width, left=left, height=0.8, color=colour[chunk % 2], edgecolor="white", linewidth=0.4
                )
                if width > 0.012 * 1000 * max(s["seconds"] for s in summaries):
                    axes.text(left + width / 2, stage, str(micro_batch), ha="center", va="center", fontsize=7)
        share = ", ".join(f"{value:.0%}" for value in one["idle"])
        chunks = f", {one['chunks']} chunks" if one["chunks"] > 1 else ""
        kept = ", ".join(map(str, one["most_kept"]))
        axes.set_title(
            f"{one['schedule']}{chunks}: waits {share} (formula {one['formula']:.0%}); keeps {kept} inputs", fontsize=10
        )
        axes.set_yticks(range(len(one["passes"])), [f"stage {i}" for i in range(len(one["passes"]))])
        axes.set_ylim(len(one["passes"]) - 0.5, -0.5)
    panels[-1].set_xlabel("milliseconds; the number is the micro-batch")
    kinds = [Patch(color="#8ec1e8", label="forward"), Patch(color="#f9c58d", label="backward, forward included")]
    figure.legend(handles=kinds, loc="outside upper right", ncols=2, fontsize=8)
    return figure


def owners(slices: Sequence[Sequence[Slice]], names: Sequence[str], title: str) -> Figure:
    """Matrices to scale, each number in the colour of the workers that hold it.

    Args:
        slices: of each worker.
        names: of the matrices, from left to right.
        title: what is held, in which layout.
    """
    masks = {name: _mask(slices, name) for name in names}
    found = sorted({int(value) for mask in masks.values() for value in np.unique(mask)})
    ratios = [mask.shape[1] for mask in masks.values()]
    tallest = max(mask.shape[0] for mask in masks.values())
    figure = Figure(figsize=(12, 2.2 + 11 * tallest / (1.25 * sum(ratios))), **LOOK)
    panels = figure.subplots(1, len(names), width_ratios=ratios, squeeze=False)[0]
    colours = ListedColormap([_colour(value) for value in found])
    for axes, (name, mask) in zip(panels, masks.items()):
        axes.imshow(
            np.searchsorted(found, mask), cmap=colours, vmin=-0.5, vmax=len(found) - 0.5, interpolation="nearest"
        )
        axes.set_anchor("N")
        short = name.removeprefix("transformer.").removesuffix(".weight")
        axes.set_title(f"{short}\n{mask.shape[0]} x {mask.shape[1]}", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
        if name.endswith("c_attn.weight"):
            third = mask.shape[0] / 3
            axes.set_yticks([third * (i + 0.5) for i in range(3)], ["Q", "K", "V"])
            axes.tick_params(length=0)
            for i in (1, 2):
                axes.axhline(third * i - 0.5, color="black", linewidth=1)
    legend = [Patch(color=_colour(value), label=_who(value)) for value in found]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(4, len(found)), fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _mask(slices: Sequence[Sequence[Slice]], name: str) -> np.ndarray:
    """Returns for each number of a matrix the workers that hold it: bit r for worker r."""
    shape = next(part.shape for parts in slices for part in parts if part.name == name)
    mask, places = np.zeros(int(np.prod(shape)), np.int64), np.arange(int(np.prod(shape))).reshape(shape)
    for rank, parts in enumerate(slices):
        for part in parts:
            if part.name == name:
                mask[part.of(places).reshape(-1)] |= 1 << rank
    return mask.reshape(shape)


def _members(mask: int) -> list[int]:
    return [rank for rank in range(mask.bit_length()) if mask >> rank & 1]


def _colour(mask: int) -> tuple[float, ...]:
    """One worker's own colour; of several, the mean of theirs, paler."""
    ranks = _members(mask)
    if not ranks:
        return (1.0, 1.0, 1.0)
    mean = np.mean([to_rgb(f"C{rank}") for rank in ranks], 0)
    return tuple(mean if len(ranks) == 1 else 0.35 * mean + 0.65)


def _who(mask: int) -> str:
    ranks = _members(mask)
    return "nobody" if not ranks else f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def memory(groups: dict[int, Sequence[dict]]) -> Figure:
    """What the fullest worker holds at each level of ZeRO: counted, formula, and growth of resident memory.

    Args:
        groups: number of workers -> a row for each level, with bytes under parameters, gradients, moments, formula and
            growth.
    """
    figure = Figure(figsize=(4.6 * len(groups) + 0.6, 4.2), **LOOK)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (workers, rows) in zip(panels, groups.items()):
        places, below = np.arange(len(rows)), np.zeros(len(rows))
        for kind, colour in (("parameters", "#3f7fb5"), ("gradients", "#d9822b"), ("moments", "#6aa56a")):
            heights = np.array([row[kind] for row in rows]) / MIB
            axes.bar(places, heights, 0.55, bottom=below, color=colour, label=f"{kind}, counted")
            below = below + heights
        formula = [row["formula"] / MIB for row in rows]
        axes.hlines(formula, places - 0.36, places + 0.36, color="black", linewidth=2, label="formula")
        axes.plot(places, [r["growth"] / MIB for r in rows], "rD", markersize=6, label="growth of resident memory")
        axes.set_xticks(places, [f"{row['level']}" for row in rows])
        axes.set_xlabel("--parallel.optimizer")
        axes.set_title(f"{workers} workers", fontsize=10)
        axes.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("MiB on the fullest worker")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, 1 + len(groups)), fontsize=8)
    return figure


def experts(runs: dict[str, dict], layer: int) -> Figure:
    """Tokens per expert over the steps, and the loss, of several trainings.

    Args:
        runs: name -> "shares" (steps, layers, experts), and "loss" (steps,).
        layer: whose experts are shown.
    """
    figure = Figure(figsize=(13, 3.9), **LOOK)
    *panels, last = figure.subplots(1, len(runs) + 1)
    for axes, (name, run) in zip(panels, runs.items()):
        shares = smooth(np.asarray(run["shares"])[:, layer])
        axes.stackplot(np.arange(1, len(shares) + 1), shares.T, colors=[f"C{e}" for e in range(shares.shape[1])])
        axes.set_title(f"{name}: experts of layer {layer + 1}", fontsize=10)
        axes.set_xlim(1, len(shares))
        axes.set_ylim(0, 1)
        axes.set_xlabel("step")
        axes.set_ylabel("share of the token copies")
        for place in np.arange(1, shares.shape[1]) / shares.shape[1]:  # where the borders are when all get the same
            axes.axhline(place, color="white", linewidth=0.6, linestyle=":")
    for name, run in runs.items():
        loss = smooth(np.asarray(run["loss"])[:, None])[:, 0]
        last.plot(np.arange(1, len(loss) + 1), loss, label=name)
    last.set_title("loss of the next letter", fontsize=10)
    last.set_xlabel("step")
    last.set_ylabel("nats")
    last.grid(alpha=0.3)
    last.legend(fontsize=8)
    return figure


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns running means over the last fiftieth of the steps, of values (steps, N)."""
    window = max(1, len(values) // 50)
    sums = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), values]), 0)
    starts = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    ends = np.arange(1, len(values) + 1)
    return (sums[ends] - sums[starts]) / (ends - starts)[:, None]


def searches(found: dict[str, dict]) -> Figure:
    """What a card holds, and what it sends by part of the step, for a layout by hand and MindSpore's searches."""
    names = ["by hand" if name == "none" else name.replace("_", "\n") for name in found]
    figure = Figure(figsize=(11, 0.7 * len(found) + 1.4), **LOOK)
    left, right = figure.subplots(1, 2, sharey=True)
    held = [(one["weight_bytes"] + one["optimizer_bytes"]) / MIB for one in found.values()]
    left.bar_label(left.barh(names, held, color="tab:blue"), [f"{value:,.0f}" for value in held], padding=3, fontsize=8)
    left.set_xlabel("MiB of weights and moments on a card")
    start = np.zeros(len(found))
    for part in next(iter(found.values()))["sent"]:
        sent = np.array([one["sent"][part] / MIB for one in found.values()])
        if sent.max() > 0.01:
            right.barh(names, sent, left=start, label=part)
            start += sent
    right.bar_label(right.containers[-1], [f"{value:,.0f}" for value in start], padding=3, fontsize=8)
    right.set_xlabel("MiB that a card sends a step, if in rings (estimate)")
    for axes in (left, right):
        axes.margins(x=0.15)
        axes.grid(alpha=0.3, axis="x")
    left.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=6, fontsize=8)
    return figure
