"""What is wrong with a rank table: its structure by a JSON schema, the rest by rules, each fault with its place."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from msllm.cluster.rank_table_rules import RULES, Fault, View
from msllm.errors import UserError, nearest
from msllm.files import read_json

SCHEMA = Path(__file__).with_name("rank_table.schema.json")

_MISSING = {
    "super_device_id": "is missing; add the SDID that npu-smi info -t spod-info -i CARD -c DIE prints",
    "super_pod_list": 'is missing; add it, or set $.version to "1.0" for servers in no super pod',
}
_KINDS = {"object": "an object {...}", "array": "a list [...]", "string": "a string"}


def faults(table: object) -> list[Fault]:
    """Returns every violated rule of a rank table as parsed from JSON; parts of a wrong structure are skipped."""
    found = [_worded(error) for error in _validator().iter_errors(table)]
    if isinstance(table, dict):
        view = View(table)
        found += _unknown_keys(view)
        found += [fault for rule in RULES for fault in rule(view)]
    return found


def refuse_faults(table: object, name: str, step: str) -> None:
    """Raises UserError with the first fault that is no warning and how many follow; ``name`` is what has it."""
    if errors := [fault for fault in faults(table) if not fault.warning]:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{name}: {errors[0]}{more}; {step}")


def load(path: str | Path) -> dict:
    """Returns a rank table's JSON; UserError where it cannot be read or has a fault that is no warning."""
    table = read_json(path)
    refuse_faults(table, str(path), f"msllm ranktable check {path} names all of them")
    return table


@functools.cache
def _validator():
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _unknown_keys(view: View) -> Iterator[Fault]:
    """A key that the schema does not have: a fault where it is close to one that is missing, else a warning."""
    schema = _validator().schema
    parts = schema["$defs"]
    levels = (
        ([view.table], schema),
        (view.servers, parts["server"]),
        (view.devices, parts["device"]),
        (view.pods, parts["super_pod"]),
        (view.pod_servers, parts["super_pod_server"]),
    )
    other = set(parts.get(f"not_in_{view.table.text('version')}", {"enum": ()})["enum"])
    for entries, part in levels:
        known = set(part["properties"])
        for entry in entries:
            for key in sorted(entry.values.keys() - known):
                hint = nearest(key, known - other - entry.values.keys())
                text = f"is an unknown key{hint}; {'rename it' if hint else 'HCCL ignores it'}"
                yield Fault(f"{entry.path}.{key}", text, warning=not hint)


def _worded(error) -> Fault:
    """An error of jsonschema in the words of this file's user."""
    path, expected = error.json_path, error.validator_value
    shown = json.dumps(error.instance, ensure_ascii=False)
    if error.validator == "required":
        key = re.match("'(.+?)'", error.message)[1]
        return Fault(f"{path}.{key}", _MISSING.get(key, "is missing; add it"))
    if error.validator == "type" and expected == "string" and type(error.instance) in (int, float):
        return Fault(path, f'is the number {shown}, expected a string; put it in quotes: "{shown}"')
    if error.validator == "type":
        return Fault(path, f"is {_kind(error.instance)}, expected {_KINDS[expected]}; correct it")
    if error.validator == "enum":
        return Fault(path, f"is {shown}, expected {' or '.join(map(json.dumps, expected))}; correct it")
    if error.validator == "pattern":
        wanted = "a whole number in quotes" if "0-9" in expected else "a name without spaces"
        return Fault(path, f"is {shown}, expected {wanted}; correct it")
    if error.validator == "maxLength":
        return Fault(path, f"has {len(error.instance)} characters, at most {expected} are allowed; shorten it")
    if error.validator == "anyOf":
        return Fault(path, f"is {shown}, expected an IPv4 or IPv6 address; correct it")
    if error.validator == "minItems":
        return Fault(path, "is empty; add at least one entry")
    assert error.validator == "not", error  # of propertyNames: the instance is a key
    return Fault(f"{path}.{error.instance}", "does not belong to this $.version; leave it out, or change the version")


def _kind(value: object) -> str:
    names = {dict: _KINDS["object"], list: _KINDS["array"], str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
