"""What a card and its wires can do: presets of ``hardware.yaml``, or of a file of the same form."""

import dataclasses
import re
from pathlib import Path

import yaml

from msllm.errors import UserError, nearest
from msllm.files import read_text

PRESETS = Path(__file__).with_name("hardware.yaml")
_UNITS = {"": 10**9, "GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20, "TB": 10**12, "TIB": 2**40}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A card, its node and the wires; bytes and seconds, speeds as a run is expected to get them.

    Attributes:
        name, source: where the figures come from.
        mode: of the layouts that run on it, see ParallelConfig.
        memory: bytes of a card that a model can have: all of it but what the runtime takes.
        peak: operations a second at most; ``flops``: of them what a run gets.
        bandwidth: of the card's memory.
        intra, inter: of what a card sends within its node, and to others.
        latency: of a message.
        cards_per_node: neighbours in the order of ranks.
    """

    name: str
    source: str
    mode: str
    memory: int
    peak: float
    flops: float
    bandwidth: float
    intra: float
    inter: float
    latency: float
    cards_per_node: int

    def with_memory(self, text: str) -> "Hardware":
        """The same with so much memory a card, all of it for the model."""
        return dataclasses.replace(self, memory=parse_bytes(text, "card_memory"))

    def with_topology(self, text: str) -> "Hardware":
        """The same with other nodes and wires.

        Args:
            text: "CARDS", "CARDS:INTRA" or "CARDS:INTRA:INTER": cards of a node, and what a card really sends within
                it and beyond, in GB/s.
        """
        parts = text.split(":")
        try:
            cards, speeds = int(parts[0]), [float(part) * 1e9 for part in parts[1:]]
        except ValueError:
            cards, speeds = 0, []
        if cards < 1 or len(parts) > 3 or any(speed <= 0 for speed in speeds):
            raise UserError(
                f"topology is {text!r}, expected the cards of a node and, where they are known, GB/s within it and "
                f"beyond, such as 8 or 8:30:12.5; change it"
            )
        return dataclasses.replace(self, cards_per_node=cards, **dict(zip(("intra", "inter"), speeds)))

    def link(self, span: int) -> float:
        """The speed at which a group of cards sends that reaches over ``span`` consecutive ranks."""
        return self.intra if span <= self.cards_per_node else self.inter


def load(name: str) -> Hardware:
    """Returns a preset by name, or "FILE" or "FILE:NAME" of another file, whose first one is the default.

    Raises:
        UserError: no such preset or file; one that lacks a value, or has a wrong one.
    """
    path, _, chosen = name.partition(":")
    if not Path(path).suffix:
        path, chosen = PRESETS, name
    try:
        found = yaml.safe_load(read_text(path))
    except yaml.YAMLError as e:
        raise UserError(f"{path} is no YAML: {' '.join(str(e).split())}; compare it with {PRESETS}") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no presets by name; compare it with {PRESETS}")
    chosen = chosen or next(iter(found))
    if chosen not in found:
        raise UserError(
            f"unknown hardware {chosen!r}{nearest(chosen, found)}; {Path(path).name} has {', '.join(found)}; give one "
            f"of them, or a file of the same form"
        )
    return _hardware(chosen, found[chosen], path)


_NUMBERS = ("tflops", "memory_gb_s", "intra_gb_s", "inter_gb_s", "latency_us", "achieved", "cards_per_node")


def _hardware(name: str, values, path) -> Hardware:
    known = ("source", "mode", "memory", "reserved", *_NUMBERS)
    values = values if isinstance(values, dict) else {}
    for key in values:
        if key not in known:
            raise UserError(f"{path}: {name} has an unknown key {key!r}{nearest(str(key), known)}; remove it")
    missing = [key for key in known if key not in values]
    if missing:
        raise UserError(f"{path}: {name} lacks {', '.join(missing)}; add them as in {PRESETS}")
    for key in _NUMBERS:
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{path}: {key} of {name} is {value!r}, expected a number above 0; change it")
    if values["mode"] not in ("explicit", "auto"):
        raise UserError(f"{path}: mode of {name} is {values['mode']!r}, expected explicit or auto; change it")
    share, giga = values["achieved"], 1e9
    memory, reserved = (parse_bytes(str(values[key]), f"{path}: {key}") for key in ("memory", "reserved"))
    return Hardware(
        name=name,
        source=str(values["source"]),
        mode=values["mode"],
        memory=memory - reserved,
        peak=values["tflops"] * 1e12,
        flops=values["tflops"] * 1e12 * share,
        bandwidth=values["memory_gb_s"] * giga * share,
        intra=values["intra_gb_s"] * giga * share,
        inter=values["inter_gb_s"] * giga * share,
        latency=values["latency_us"] * 1e-6,
        cards_per_node=int(values["cards_per_node"]),
    )


def parse_bytes(text: str, name: str) -> int:
    """Returns the bytes of "32GB" (32e9), "32GiB" (32 x 2^30) or "32" (gigabytes).

    Args:
        name: of the option, for the error.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise UserError(
            f"{name} is {text!r}, expected a size such as 32GB (32e9 bytes) or 32GiB (32 x 2^30); change it"
        )
    return int(float(found[1]) * _UNITS[found[2].upper()])
