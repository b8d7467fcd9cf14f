"""Packages whose names are imported when first used: MindSpore takes seconds, and `msllm --help` must not wait."""

import importlib
from collections.abc import Callable


def exports(package: str, names: dict[str, str]) -> tuple[list[str], Callable[[str], object]]:
    """Returns ``__all__`` and ``__getattr__`` of a package; ``names`` maps a public name to its submodule."""

    def get(name: str):
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return sorted(names), get
