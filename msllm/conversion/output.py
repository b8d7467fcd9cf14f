"""The folder that a conversion writes."""

import shutil
from pathlib import Path

from msllm.errors import UserError


def new_folder(path: str | Path) -> Path:
    """Returns ``path`` where it is absent or empty; UserError otherwise."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; choose another output")
    return path


def copy_small_files(source: Path, target: Path) -> None:
    """Copies what lies beside the weights of a folder: configurations, the tokenizer, the chat template."""
    for path in source.iterdir():
        index = path.name.endswith("index.json") or path.name == "param_name_map.json"
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".jinja") and not index:
            shutil.copyfile(path, target / path.name)
