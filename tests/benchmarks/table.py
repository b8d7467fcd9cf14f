"""Aligned tables, and how a goal is written and judged."""


def aligned(header: list[str], rows: list[list[str]]) -> str:
    """Lays cells out in columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def at_most(value: float, goal: float) -> dict:
    """A goal from above, as it stands in the JSON files."""
    return {"goal": f"<= {goal:g}", "met": value <= goal}


def at_least(value: float, goal: float | None) -> dict:
    """A goal from below, as it stands in the JSON files; None is no goal."""
    return {"goal": None, "met": None} if goal is None else {"goal": f">= {goal:g}", "met": value >= goal}


def verdict(judged: dict) -> str:
    """A cell with the goal and whether it was met."""
    return "-" if judged["goal"] is None else f"{judged['goal']} {'met' if judged['met'] else 'MISSED'}"


def milliseconds(times: dict) -> str:
    """A cell with the median and the middle half of process.spread."""
    low, high = times["quartiles_ms"]
    return f"{times['median_ms']:.1f} ({low:.1f}-{high:.1f})"
