"""Entities from tags, and how many are found: an entity counts when its type and both ends are right.

BIO follows conlleval, the script of the CoNLL shared tasks (Tjong Kim Sang and De Meulder 2003): B-X begins an entity,
and so does I-X that does not continue one of type X. BIOES is strict: an entity is S-X, or B-X, any number of I-X and
E-X; whatever else stands there is none.
"""

from collections import Counter
from collections.abc import Sequence

Entity = tuple[str, int, int]


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Returns (type, first token, end) of the entities that tags mark, in order; the end is one past the last.

    Args:
        tags: of one sentence; a tag that is not of the form B-X belongs to no entity.
        scheme: "BIO" or "BIOES"; see msllm.data.tasks.tag_scheme.
    """
    return _bio(tags) if scheme == "BIO" else _bioes(tags)


def _bio(tags: Sequence[str]) -> list[Entity]:
    found: list[Entity] = []
    begin, kind = 0, None
    for i, tag in enumerate([*tags, "O"]):
        mark, _, new = tag.partition("-")
        if kind is not None and (mark != "I" or new != kind):
            found.append((kind, begin, i))
            kind = None
        if kind is None and mark in ("B", "I") and new:
            begin, kind = i, new
    return found


def _bioes(tags: Sequence[str]) -> list[Entity]:
    found: list[Entity] = []
    begin, kind = 0, None
    for i, tag in enumerate(tags):
        mark, _, new = tag.partition("-")
        if mark == "S" and new:
            found.append((new, i, i + 1))
        elif mark == "E" and kind is not None and new == kind:
            found.append((kind, begin, i + 1))
        if mark == "B" and new:
            begin, kind = i, new
        elif mark != "I" or new != kind:
            kind = None
    return found


def entity_metrics(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str | None) -> dict:
    """Compares the tags of sentences.

    Args:
        true, predicted: tags, a sequence a sentence, of equal lengths.
        scheme: as for entities; None compares tag by tag only.

    Returns:
        "accuracy" of the tags and "count" of sentences; with a scheme also "precision", "recall" and "f1" over the
        entities of all types, and "per_type": type -> the same three and support. 0 where nothing is to divide by.
    """
    pairs = [(t, p) for ts, ps in zip(true, predicted, strict=True) for t, p in zip(ts, ps, strict=True)]
    metrics = {"accuracy": sum(t == p for t, p in pairs) / max(1, len(pairs)), "count": len(true)}
    if scheme is None:
        return metrics
    gold, found, right = Counter(), Counter(), Counter()
    for ts, ps in zip(true, predicted):
        mine, theirs = set(entities(ts, scheme)), set(entities(ps, scheme))
        gold.update(kind for kind, *_ in mine)
        found.update(kind for kind, *_ in theirs)
        right.update(kind for kind, *_ in mine & theirs)
    per_type = {kind: _figures(right[kind], found[kind], gold[kind]) for kind in sorted(gold | found)}
    whole = _figures(right.total(), found.total(), gold.total())
    return {**metrics, **whole, "per_type": per_type}


def _figures(right: int, found: int, gold: int) -> dict:
    precision, recall = right / max(1, found), right / max(1, gold)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": gold}
