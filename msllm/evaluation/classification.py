"""How well classes are told apart: accuracy, F1, and who is taken for whom."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from msllm.data.tasks import label_list
from msllm.files import atomic_file


def classification_figures(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str] | None = None) -> dict:
    """Compares the classes of texts, by scikit-learn.

    Args:
        true, predicted: the names of the classes.
        labels: all names in order; those that occur where None.

    Returns:
        "accuracy"; "macro_f1", the plain mean of the classes' F1 over those that occur in ``true`` or ``predicted``;
        "count"; "per_class": name -> precision, recall, f1 (0 where nothing is to divide by) and support; and
        "confusion_matrix", rows are true classes, columns predicted ones.
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support  # slow to import

    true, predicted = list(true), list(predicted)
    labels = label_list(true + predicted) if labels is None else labels
    columns = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    names = ("precision", "recall", "f1", "support")
    return {
        "accuracy": sum(t == p for t, p in zip(true, predicted, strict=True)) / len(true),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
        "count": len(true),
        "per_class": {
            label: dict(zip(names, (*map(float, values[:3]), int(values[3]))))
            for label, values in zip(labels, zip(*columns))
        },
        "confusion_matrix": confusion_matrix(true, predicted, labels=labels).tolist(),
    }


def figures_table(rows: Mapping[str, Mapping]) -> str:
    """Returns precision, recall, f1 and support of classes, or of types of entities, as lines of text."""
    width = max(map(len, rows), default=0)
    lines = [f"{'':{width}}  precision  recall      f1  support"]
    for name, row in rows.items():
        figures = f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['support']:7}"
        lines.append(f"{name:{width}}  {figures}")
    return "\n".join(lines)


def plot_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix into a PNG: counts as numbers, shares of the true class as colours."""
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    for i, j in np.ndindex(counts.shape):
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, label="share of the true class")
    with atomic_file(path) as tmp:
        figure.savefig(tmp, format="png")
