"""The rules of a rank table that a JSON schema cannot say, one function a rule.

Sources: Huawei's HCCL user guide, CANN 9.0, pages "Rank Table Configuration" for Atlas A2 and A3; and, for what HCCL
itself refuses, the parser among its published sources (topoinfo_ranktableConcise.cc).
"""

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from msllm.errors import nearest

# Lowest and highest value. A device_id above 7 is of a server with 16: Atlas A3 (8 cards of two dies each), A2 Box16.
RANGES = {
    "device_id": (0, 15),
    "super_device_id": (0, 2**32 - 2),
    "device_port": (1, 65535),
    "backup_device_port": (1, 65535),
    "host_port": (1, 65535),
}
SYSTEM_PORTS = 1023


@dataclass(frozen=True)
class Fault:
    """A violated rule: where (a JSON path such as $.server_list[0].device[3].rank_id), what, and the next step.

    HCCL takes a table whose faults are all of them a ``warning``, but may not do what was meant, or be slower.
    """

    path: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{'warning: ' if self.warning else ''}{self.path}: {self.text}"


@dataclass(frozen=True)
class Entry:
    """An object of a list in the table, with its path and the number of its owner in the owner's list."""

    path: str
    owner: int
    values: dict

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        text = self.text(key) or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None  # as the schema has it

    def address(self, key: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        try:
            return ipaddress.ip_address(self.text(key) or "")
        except ValueError:
            return None


class View:
    """The parts of a table that have the right structure."""

    def __init__(self, table: dict):
        self.table = Entry("$", 0, table)
        self.servers = list(_entries([self.table], "server_list"))
        self.devices = list(_entries(self.servers, "device"))
        self.pods = list(_entries([self.table], "super_pod_list"))
        self.pod_servers = list(_entries(self.pods, "server_list"))
        pods = {entry.text("server_id"): entry.owner for entry in reversed(self.pod_servers)}  # the first one counts
        self.pod_of = [pods.get(server.text("server_id")) for server in self.servers]


def _entries(owners: list[Entry], key: str) -> Iterator[Entry]:
    for number, owner in enumerate(owners):
        values = owner.values.get(key)
        for i, value in enumerate(values if isinstance(values, list) else []):
            if isinstance(value, dict):
                yield Entry(f"{owner.path}.{key}[{i}]", number, value)


def _twice(found: Iterable[tuple[Entry, str, Hashable]], step: str) -> Iterator[Fault]:
    """A fault for each (entry, key of the value, what must differ) that an earlier one equals; None is not compared."""
    first: dict[Hashable, Entry] = {}
    for entry, key, value in found:
        if value is not None and first.setdefault(value, entry) is not entry:
            yield Fault(f"{entry.path}.{key}", f"{entry.text(key)} is also that of {first[value].path}; {step}")


def server_count(view: View) -> Iterator[Fault]:
    count, servers = view.table.number("server_count"), len(view.servers)
    if count is not None and count != servers:
        yield Fault("$.server_count", f'is {count} for {servers} entries of server_list; write "{servers}"')


def server_ids(view: View) -> Iterator[Fault]:
    yield from _twice(((s, "server_id", s.text("server_id")) for s in view.servers), "give each server its own")


def host_addresses(view: View) -> Iterator[Fault]:
    yield from _twice(((s, "host_ip", s.address("host_ip")) for s in view.servers), "give each server its own")


def device_ids(view: View) -> Iterator[Fault]:
    found = ((d, "device_id", None if (n := d.number("device_id")) is None else (d.owner, n)) for d in view.devices)
    yield from _twice(found, "a device stands once in its server; see ls /dev/davinci*")


def device_addresses(view: View) -> Iterator[Fault]:
    found = ((d, "device_ip", d.address("device_ip")) for d in view.devices)
    yield from _twice(found, "each device has its own; see hccn_tool -i N -ip -g")


def ranks(view: View) -> Iterator[Fault]:
    found = ((d, "rank_id", d.number("rank_id")) for d in view.devices)
    yield from _twice(found, f"each device has its own, 0 to {len(view.devices) - 1}")


def rank_gaps(view: View) -> Iterator[Fault]:
    count = len(view.devices)
    given = [d.number("rank_id") for d in view.devices]
    if None in given:
        return
    for device, rank in zip(view.devices, given):
        if rank >= count:
            missing = sorted(set(range(count)) - set(given))
            yield Fault(
                f"{device.path}.rank_id",
                f"is {rank}; {count} devices have the ranks 0 to {count - 1} without a gap; "
                f"missing: {', '.join(map(str, missing))}",
            )


def _between(groups: dict[int, set[int]]) -> dict[int, set[int]]:
    """Returns, for each group of ranks, the ranks of other groups that lie between its own."""
    every = set().union(*groups.values())
    inside = {k: {r for r in every - own if min(own) < r < max(own)} for k, own in groups.items()}
    return {k: ranks for k, ranks in inside.items() if ranks}


def _ranks_by(view: View, group_of: Callable[[Entry], int | None]) -> dict[int, set[int]]:
    groups: dict[int, set[int]] = {}
    for device in view.devices:
        if (group := group_of(device)) is not None and (rank := device.number("rank_id")) is not None:
            groups.setdefault(group, set()).add(rank)
    return groups


def ranks_of_a_server(view: View) -> Iterator[Fault]:
    for server, others in _between(_ranks_by(view, lambda d: d.owner)).items():
        yield Fault(
            f"{view.servers[server].path}.device",
            f"other servers' ranks ({_short(others)}) lie between this server's; number one server after the other",
        )


def ranks_of_a_super_pod(view: View) -> Iterator[Fault]:
    for pod, others in _between(_ranks_by(view, lambda d: view.pod_of[d.owner])).items():
        yield Fault(
            f"{view.pods[pod].path}.server_list",
            f"other super pods' ranks ({_short(others)}) lie between this one's; number one super pod after the other",
        )


def _short(numbers: Iterable[int]) -> str:
    shown = sorted(numbers)
    return ", ".join(map(str, shown[:8])) + (", ..." if len(shown) > 8 else "")


def order_of_ranks(view: View) -> Iterator[Fault]:
    for number, server in enumerate(view.servers):
        own = [d for d in view.devices if d.owner == number]
        pairs = [(d.number("rank_id"), d.number("device_id")) for d in own]
        if any(None in pair for pair in pairs):
            continue
        devices = [device for _, device in sorted(pairs)]
        if devices != sorted(devices):
            yield Fault(
                f"{server.path}.device",
                f"devices in the order of their ranks are {', '.join(map(str, devices))}; neighbours talk faster: "
                "number the ranks in the order of device_id",
                warning=True,
            )


def groups_of_four(view: View) -> Iterator[Fault]:
    if view.table.text("version") != "1.0":
        return
    for number, server in enumerate(view.servers):
        own = {d.number("device_id") for d in view.devices if d.owner == number}
        if None in own or max(own, default=8) > 7:
            continue
        halves = {device // 4 for device in own}
        if len(own) not in (1, 2, 4, 8) or (len(halves) > 1 and len(own) < 8):
            yield Fault(
                f"{server.path}.device",
                f"devices are {_short(own)}; Atlas 800 of the first generation (Ascend 910) works with 1, 2 or 4 of "
                "0 to 3 or of 4 to 7, or with all 8: choose such, unless the server is a later one",
                warning=True,
            )


def cards_per_server(view: View) -> Iterator[Fault]:
    counts = Counter(d.owner for d in view.devices)
    if len(set(counts.values())) > 1:
        numbers = ", ".join(str(counts[i]) for i in range(len(view.servers)))
        yield Fault("$.server_list", f"servers have {numbers} devices; HCCL is slower unless all have as many", True)


def ranges(view: View) -> Iterator[Fault]:
    for device in view.devices:
        for key, (low, high) in RANGES.items():
            value = device.number(key)
            if value is not None and not low <= value <= high:
                yield Fault(f"{device.path}.{key}", f"is {value}, expected {low} to {high}; correct it")
            elif value is not None and key.endswith("port") and value <= SYSTEM_PORTS:
                text = f"is {value}; 1 to {SYSTEM_PORTS} are the system's ports: take a higher one"
                yield Fault(f"{device.path}.{key}", text, warning=True)


def unusable_addresses(view: View) -> Iterator[Fault]:
    for entry in (*view.servers, *view.devices):
        for key in ("host_ip", "device_ip", "backup_device_ip"):
            address = entry.address(key)
            if address is not None and (address.is_unspecified or address.is_loopback or address.is_multicast):
                kind = "unspecified" if address.is_unspecified else "loopback" if address.is_loopback else "multicast"
                text = f"is {address} ({kind}), which other servers cannot reach; take that of the network port"
                yield Fault(f"{entry.path}.{key}", text)


def lacking_addresses(view: View) -> Iterator[Fault]:
    super_pods = view.table.text("version") == "1.2"
    groups, kind = (len(view.pods), "super pods") if super_pods else (len(view.servers), "servers")
    for device in view.devices:
        if groups > 1 and "device_ip" not in device.values:
            text = f"is missing; with several {kind} each device needs it: add what hccn_tool -i N -ip -g prints"
            yield Fault(f"{device.path}.device_ip", text)


def address_families(view: View) -> Iterator[Fault]:
    for entries, key in ((view.servers, "host_ip"), (view.devices, "device_ip")):
        given = [(e, a.version) for e in entries if (a := e.address(key)) is not None]
        for entry, version in given:
            if version != given[0][1]:
                text = f"is IPv{version}, that of {given[0][0].path} is IPv{given[0][1]}; use one of them everywhere"
                yield Fault(f"{entry.path}.{key}", text)


def host_ports(view: View) -> Iterator[Fault]:
    found = ((d, "host_port", None if (n := d.number("host_port")) is None else (d.owner, n)) for d in view.devices)
    yield from _twice(found, "each device of a server has its own")


def backup_addresses(view: View) -> Iterator[Fault]:
    found = [(d, "backup_device_ip", d.address("backup_device_ip")) for d in view.devices]
    yield from _twice(found, "each device has its own")
    owners = {a: d for d in view.devices if (a := d.address("device_ip")) is not None}
    devices = {(d.owner, d.number("device_id")): d for d in view.devices}
    for device, key, address in found:
        number = device.number("device_id")
        if address is None or number is None:
            continue
        other = devices.get((device.owner, number ^ 1))  # the two dies of card k are the devices 2k and 2k+1
        if (owners.get(address, other) is not other) or (other is not None and other.address("device_ip") != address):
            expected = f"device_ip of device {number ^ 1}, the other die of its card"
            yield Fault(f"{device.path}.{key}", f"is {address}, expected the {expected}; correct it")
        port = device.number("backup_device_port")
        if other is not None and port is not None and port == other.number("device_port"):
            text = f"is also device_port of {other.path}, the other die of its card; take another"
            yield Fault(f"{device.path}.backup_device_port", text)


def super_pod_ids(view: View) -> Iterator[Fault]:
    yield from _twice(
        ((p, "super_pod_id", p.text("super_pod_id")) for p in view.pods), "put its servers into one entry"
    )


def servers_of_super_pods(view: View) -> Iterator[Fault]:
    known = {s.text("server_id") for s in view.servers} - {None}
    placed = {entry.text("server_id") for entry in view.pod_servers}
    yield from _twice(((e, "server_id", e.text("server_id")) for e in view.pod_servers), "leave one out")
    for entry in view.pod_servers:
        name = entry.text("server_id")
        if name is not None and name not in known:
            text = f"{name} is no server_id of server_list{nearest(name, known)}; correct it"
            yield Fault(f"{entry.path}.server_id", text)
    for server in view.servers:
        name = server.text("server_id")
        if view.pods and name is not None and name not in placed:
            text = f"{name} is in no super pod; add it to the server_list of one in super_pod_list"
            yield Fault(f"{server.path}.server_id", text)


def super_device_ids(view: View) -> Iterator[Fault]:
    found = (
        (d, "super_device_id", None if None in (key := (view.pod_of[d.owner], d.number("super_device_id"))) else key)
        for d in view.devices
    )
    yield from _twice(found, "each device of a super pod has its own; see SDID in npu-smi info -t spod-info")


RULES = (
    server_count,
    server_ids,
    host_addresses,
    device_ids,
    ranges,
    unusable_addresses,
    lacking_addresses,
    address_families,
    device_addresses,
    backup_addresses,
    host_ports,
    ranks,
    rank_gaps,
    ranks_of_a_server,
    order_of_ranks,
    groups_of_four,
    cards_per_server,
    super_pod_ids,
    servers_of_super_pods,
    super_device_ids,
    ranks_of_a_super_pod,
)
