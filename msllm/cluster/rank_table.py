"""HCCL rank tables: which device of which server is which rank, and at which address; versions 1.0 and 1.2."""

import ipaddress
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msllm.cluster.rank_table_check import load, refuse_faults
from msllm.errors import UserError, nearest
from msllm.files import atomic_file

# The keys of a device in the table besides device_id and rank_id, in the order they are written.
DETAILS = ("super_device_id", "device_ip", "device_port", "backup_device_ip", "backup_device_port", "host_port")


@dataclass(frozen=True)
class Card:
    """A device with a rank: a card, or one of the two dies of an Atlas A3 card. ``None`` is what the table leaves out.

    device_id is the number in its server, super_device_id that in its super pod.
    """

    rank: int
    device_id: int
    super_device_id: str | None = None
    device_ip: str | None = None
    device_port: str | None = None
    backup_device_ip: str | None = None
    backup_device_port: str | None = None
    host_port: str | None = None


@dataclass(frozen=True)
class Server:
    """A server and its cards, in the order of the table; super_pod_id is None in version 1.0."""

    server_id: str
    cards: tuple[Card, ...]
    host_ip: str | None = None
    super_pod_id: str | None = None


@dataclass(frozen=True)
class RankTable:
    """The servers of a job, in the order of the table."""

    version: str
    servers: tuple[Server, ...]

    @property
    def cards(self) -> list[Card]:
        """All cards; cards[r] has rank r."""
        return sorted((card for server in self.servers for card in server.cards), key=lambda card: card.rank)

    def cards_of(self, server_id: str) -> list[Card]:
        """Returns the cards of a server by rank; UserError where the table has no such server."""
        for server in self.servers:
            if server.server_id == server_id:
                return sorted(server.cards, key=lambda card: card.rank)
        known = [server.server_id for server in self.servers]
        raise UserError(
            f"server {server_id} is not in the rank table{nearest(server_id, known)}; in it are {', '.join(known)}"
        )

    @property
    def super_pods(self) -> dict[str, list[Server]]:
        """Super pods by id, in the order of their first servers; empty in version 1.0."""
        pods: dict[str, list[Server]] = {}
        for server in self.servers:
            if server.super_pod_id is not None:
                pods.setdefault(server.super_pod_id, []).append(server)
        return pods

    def to_json(self) -> dict:
        """Returns the table as HCCL reads it: every value a string."""
        table = {
            "version": self.version,
            "server_count": str(len(self.servers)),
            "server_list": [_server_json(server, self.version) for server in self.servers],
        }
        if self.version == "1.2":
            table["super_pod_list"] = [
                {"super_pod_id": pod, "server_list": [{"server_id": server.server_id} for server in servers]}
                for pod, servers in self.super_pods.items()
            ]
        return table | {"status": "completed"}

    @property
    def summary(self) -> str:
        """For example "16 cards on 2 servers"; in a super pod "16 devices on 4 servers in 2 super pods"."""
        kind = "card" if self.version == "1.0" else "device"
        parts = f"{_count(len(self.cards), kind)} on {_count(len(self.servers), 'server')}"
        return parts + (f" in {_count(len(self.super_pods), 'super pod')}" if self.super_pods else "")


def _server_json(server: Server, version: str) -> dict:
    head = {"server_id": server.server_id} | ({} if server.host_ip is None else {"host_ip": server.host_ip})
    devices = [
        {"device_id": str(card.device_id)}
        | {key: value for key in DETAILS if (value := getattr(card, key)) is not None}
        | {"rank_id": str(card.rank)}
        for card in server.cards
    ]
    return head | {"device": devices} | ({"host_nic_ip": "reserve"} if version == "1.0" else {})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def read(path: str | Path) -> RankTable:
    """Returns the rank table of a file; UserError where it cannot be read or violates a rule."""
    return parse(load(path))


def parse(table: dict) -> RankTable:
    """Returns the rank table of a JSON object that violates no rule (see rank_table_check.load)."""
    pods = {
        entry["server_id"]: pod["super_pod_id"]
        for pod in table.get("super_pod_list", [])
        for entry in pod["server_list"]
    }
    servers = [
        Server(
            server["server_id"],
            tuple(
                Card(int(d["rank_id"]), int(d["device_id"]), **{key: d.get(key) for key in DETAILS})
                for d in server["device"]
            ),
            server.get("host_ip"),
            pods.get(server["server_id"]),
        )
        for server in table["server_list"]
    ]
    return RankTable(table["version"], tuple(servers))


def merge(tables: Sequence[dict], names: Sequence[str]) -> dict:
    """Returns one table of the servers of several, none of which violates a rule; all as JSON objects.

    Ranks go on from table to table, in the order of ``tables``; super pods of one id become one. UserError, with the
    ``names`` of two tables, where their versions differ or they share a server, a host address or a device address;
    and where the whole violates another rule.
    """
    seen: dict[tuple[str, str], str] = {}
    servers: list[dict] = []
    pods: dict[str, list[dict]] = {}
    first_rank = 0
    for table, name in zip(tables, names):
        if table["version"] != tables[0]["version"]:
            raise UserError(
                f"{name} has version {table['version']}, {names[0]} has {tables[0]['version']}; "
                "generate them again in one version"
            )
        for identity in _identities(table):
            if identity in seen:
                raise UserError(
                    f"{' '.join(identity)} is in {seen[identity]} and in {name}; "
                    "leave one of the two out, or correct the one that is wrong"
                )
            seen[identity] = name
        for server in table["server_list"]:
            devices = [d | {"rank_id": str(int(d["rank_id"]) + first_rank)} for d in server["device"]]
            servers.append(server | {"device": devices})
        for pod in table.get("super_pod_list", []):
            pods.setdefault(pod["super_pod_id"], []).extend(pod["server_list"])
        first_rank += sum(len(server["device"]) for server in table["server_list"])
    merged = {"version": tables[0]["version"], "server_count": str(len(servers)), "server_list": servers}
    if pods:
        merged["super_pod_list"] = [{"super_pod_id": pod, "server_list": entries} for pod, entries in pods.items()]
    merged["status"] = "completed"
    refuse_faults(merged, "the merged table", "correct the tables, or give them in another order")
    return merged


def _identities(table: dict) -> Iterator[tuple[str, str]]:
    """What no other table of the job may have, as (key, value)."""
    for server in table["server_list"]:
        yield "server_id", server["server_id"]
        if "host_ip" in server:
            yield "host_ip", str(ipaddress.ip_address(server["host_ip"]))
        for device in server["device"]:
            if "device_ip" in device:
                yield "device_ip", str(ipaddress.ip_address(device["device_ip"]))


def save(path: str | Path, table: dict, overwrite: bool = False) -> None:
    """Writes a table, a device a line; UserError where ``path`` exists and ``overwrite`` is not set."""
    if Path(path).exists() and not overwrite:
        raise UserError(f"{path} exists; choose another --output, or add --overwrite")
    with atomic_file(path) as tmp:
        tmp.write_text(_layout(table) + "\n", encoding="utf-8")


def _layout(value: object, indent: str = "") -> str:
    """JSON in which an object or a list of plain values takes one line."""
    entries = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(entry, dict | list) for entry in entries):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + "  "
    names = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(entries)
    lines = ",\n".join(f"{inner}{name}{_layout(entry, inner)}" for name, entry in zip(names, entries))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{lines}\n{indent}{closing}"
