"""The pictures of section 6.7."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

LOOK = {"dpi": 110, "layout": "constrained"}


def offload(rows: Sequence[dict], states: float, limit: float) -> Figure:
    """Private memory at its peak, by where states are, and who trains under the limit; time of a step."""
    figure = Figure(figsize=(11, 3.6), **LOOK)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1))
    free = [row for row in rows if row["limit_mib"] is None]
    names = [row["states"].replace(" and ", "\nand ") for row in free]
    limited = {row["states"]: row for row in rows if row["limit_mib"] is not None}
    asked, used = ([row["peaks_mib"][kind] for row in free] for kind in ("asked for", "private"))
    bars = left.barh(names, asked, color="tab:blue", alpha=0.3, height=0.5, label="asked for, at most")
    ends = ["fails" if limited[row["states"]]["exit"] else "trains" for row in free]
    left.bar_label(bars, [f"{end} under the limit" for end in ends], padding=4, fontsize=9)
    bars = left.barh(names, used, color="tab:blue", height=0.3, label="in use, at most")
    left.bar_label(bars, [f"{size:,}" for size in used], label_type="center", fontsize=8, color="white")
    left.set_xlim(0, 1.45 * max(asked))
    left.axvline(states, color="tab:orange", label=f"states: {states:,.0f}")
    left.axvline(limit, color="black", linestyle="--", label=f"limit of what is asked for: {limit:,}")
    left.set_xlabel("MiB of private memory")
    left.invert_yaxis()
    bars = right.barh(names, [row["seconds"] for row in free], color="tab:green", height=0.5)
    right.bar_label(bars, [f"{row['seconds']:.1f}" for row in free], padding=3, fontsize=8)
    right.set_xlabel("seconds a step, without a limit")
    right.margins(x=0.15)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return figure


def servers(alone: dict, modes: Sequence[dict]) -> Figure:
    """Losses of one process and of servers by step and by time; how stale gradients were."""
    figure = Figure(figsize=(13, 3.9), **LOOK)
    by_step, by_time, stale = figure.subplots(1, 3)
    for mode in modes:
        label = f"staleness at most {mode['bound']}" if mode["bound"] else "waiting for all"
        loss = _smooth(mode["losses"])
        by_step.plot(np.arange(1, len(loss) + 1), loss, label=label)
        by_time.plot(mode["times"], loss, label=label)
    loss = _smooth(alone["losses"])
    by_step.plot(np.arange(1, len(loss) + 1), loss, "k:", label="one process")
    by_step.set_xlabel("step of the first who trains")
    by_time.set_xlabel("seconds")
    for axes in (by_step, by_time):
        axes.set_ylabel("loss of the next letter, nats")
        axes.grid(alpha=0.3)
    by_step.legend(fontsize=8)
    loose = [mode for mode in modes if mode["bound"]]
    most = max((max(map(max, mode["staleness"])) for mode in loose), default=1)
    width = 0.8 / max(1, len(loose))
    for i, mode in enumerate(loose):
        counts = np.bincount(np.concatenate(mode["staleness"]).astype(int), minlength=most + 1)
        places = np.arange(most + 1) + (i - (len(loose) - 1) / 2) * width
        stale.bar(places, counts / counts.sum(), width, label=f"at most {mode['bound']} ahead", color=f"C{i + 1}")
    stale.set_xlabel("staleness of a gradient, in updates")
    stale.set_ylabel("share of the gradients")
    stale.legend(fontsize=8)
    return figure


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Means over the last twentieth of the steps."""
    window = max(1, len(values) // 20)
    return np.array([np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])
