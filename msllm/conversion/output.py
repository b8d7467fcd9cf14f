"""The folder that a conversion writes."""

from pathlib import Path

from msllm.errors import UserError


def new_folder(path: str | Path) -> Path:
    """Returns ``path`` where it is absent or empty; UserError otherwise."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; choose another output")
    return path
