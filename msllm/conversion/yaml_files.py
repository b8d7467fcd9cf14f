"""YAML files: reading with errors that name the line or the key, writing in the order of keys."""

import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from msllm.errors import UserError, nearest
from msllm.files import atomic_file, read_text

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "keys with values",
    list: "a list",
}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; UserError where the syntax is wrong, or it holds something else."""
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as e:
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None) or "wrong syntax"
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path} is not YAML: {problem}{where}; mend that line") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected keys with values; give a YAML of a run")
    return values


def write_yaml(path: str | Path, values: dict[str, Any], head: str = "") -> None:
    """Writes a mapping as YAML, in its order, after a comment; replaces the file in one step."""
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    with atomic_file(path) as tmp:
        tmp.write_text(comment + yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


class Yaml:
    """A YAML of nested mappings, whose values are taken by their paths and checked for their kind.

    Args:
        values: what it holds.
        where: its name, for errors.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def get(self, path: str, kind: type, default: Any = None) -> Any:
        """Returns a value, the default where the YAML has none; UserError where it is of another kind."""
        value: Any = self.values
        for key in path.split("."):
            value = by_type(value).get(key) if isinstance(value, Mapping | list) else None
        return default if value is None else self.checked(path, value, kind)

    def checked(self, path: str, value: Any, kind: type) -> Any:
        """Returns a value of the kind; a number may be written as a text, as YAML reads 1e-5."""
        if kind is float and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                pass
        elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        raise UserError(f"{self.where}: {path} is {value!r}, expected {_KINDS[kind]}; correct it")

    def one_of(self, path: str, known: Iterable[str], default: str | None = None) -> str:
        """Returns a value that is one of several; UserError with the nearest else."""
        value = self.get(path, str, default)
        if value not in known:
            raise UserError(
                f"{self.where}: {path} is {value!r}{nearest(str(value), known)}; read are {', '.join(known)}"
            )
        return value

    def fields(self, path: str, cls: type) -> dict[str, Any]:
        """Returns what a section says of the fields of a dataclass; UserError where it says more."""
        known, values = typing.get_type_hints(cls), {}
        for key, value in (self.get(path, dict, {}) if path else self.values).items():
            name = f"{path}.{key}".lstrip(".")
            if key not in known:
                raise UserError(f"{self.where}: unknown key {name}{nearest(str(key), known)}; correct it")
            choices = typing.get_args(known[key])
            values[key] = self.checked(name, value, type(choices[0]) if choices else known[key])
        return values


def by_type(value: Any) -> Any:
    """Returns a list of things with a "type" as a mapping from these types; other values as they are."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "type" in item for item in value):
        return {str(item["type"]): item for item in value}
    return value
