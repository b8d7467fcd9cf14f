"""The names of the files that MindFormers writes."""

from pathlib import Path

STEM, INDEX = "mindspore_model", "param_name_map.json"


def is_mindformers(source: str | Path) -> bool:
    """Whether a path is a checkpoint of MindFormers, by the names of files: a .ckpt, folders of ranks, an index."""
    source = Path(source)
    if source.is_file():
        return source.suffix == ".ckpt"
    patterns = ("*.ckpt", INDEX, "rank_*/*.ckpt", "rank_*/*.safetensors", "checkpoint/rank_*", f"{STEM}.yaml")
    return source.is_dir() and any(next(source.glob(pattern), None) is not None for pattern in patterns)
