"""A list of servers and the addresses of their cards, as text, for a rank table of several servers in one go."""

import re
import shlex
from pathlib import Path

from msllm.cluster.rank_table import DETAILS, Card, RankTable, Server
from msllm.cluster.rank_table_rules import RANGES
from msllm.errors import UserError, nearest
from msllm.files import read_text

# What a line may say of its server besides its name; of DETAILS each is a list with a value for each device.
KEYS = ("devices", "host_ip", "super_pod_id", *DETAILS)


def read_host_list(path: str | Path) -> RankTable:
    """Returns the table of the servers in a text file, ranks in the order of its lines and of their devices.

    A line is a server: its server_id, then key=value for what KEYS lists, lists with commas and without spaces;
    # begins a comment. Without ``devices`` they are 0, 1, 2, ..., as many as the first list has values:

        10.0.0.1  device_ip=192.168.100.101,192.168.101.101
        10.0.0.2  device_ip=192.168.100.102,192.168.101.102  devices=4-5

    With super_pod_id (on every line or on none) the table has version 1.2. UserError names the line.
    """
    servers: list[Server] = []
    first_rank = 0
    for number, line in enumerate(read_text(path).splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as e:
            raise UserError(f"{where}: {e}; mend the quotes") from None
        if not words:
            continue
        server = _server(words, first_rank, where)
        if servers and (server.super_pod_id is None) != (servers[0].super_pod_id is None):
            raise UserError(f"{where}: super_pod_id must stand on every line or on none; add it or leave it out")
        servers.append(server)
        first_rank += len(server.cards)
    if not servers:
        raise UserError(f"{path} names no server; write a line a server, such as 10.0.0.1 device_ip=192.168.100.101")
    return RankTable("1.0" if servers[0].super_pod_id is None else "1.2", tuple(servers))


def _server(words: list[str], first_rank: int, where: str) -> Server:
    name, pairs = words[0], [word.partition("=") for word in words[1:]]
    if "=" in name:
        raise UserError(f"{where}: begins with {name!r}, expected the server's name or address; write it first")
    values: dict[str, str] = {}
    for key, equals, value in pairs:
        if not equals or not value:
            raise UserError(f"{where}: {key!r} is no key=value; write lists with commas and no spaces")
        if key not in KEYS:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, KEYS)}; known are {', '.join(KEYS)}")
        if key in values:
            raise UserError(f"{where}: {key} stands twice; leave one out")
        values[key] = value
    lists = {key: values[key].split(",") for key in DETAILS if key in values}
    if "devices" in values:
        devices = parse_devices(values["devices"], where)
    elif lists:
        devices = list(range(len(next(iter(lists.values())))))
    else:
        raise UserError(f"{where}: says nothing of the cards of {name}; add device_ip=... or devices=0-7")
    for key, entries in lists.items():
        if len(entries) != len(devices):
            raise UserError(f"{where}: {key} has {len(entries)} values for {len(devices)} devices; give each one")
    cards = tuple(
        Card(first_rank + i, device, **{key: entries[i] for key, entries in lists.items()})
        for i, device in enumerate(devices)
    )
    return Server(name, cards, values.get("host_ip"), values.get("super_pod_id"))


def parse_devices(text: str, where: str = "--devices") -> list[int]:
    """Returns the device numbers of "0-7", "0,2,5", "0-3,6" or "[0,8)" (0 to 7, as hccl_tools.py wrote it)."""
    half_open = re.fullmatch(r"\s*\[\s*(\d+)\s*,\s*(\d+)\s*\)\s*", text)
    if half_open:
        spans = [(int(half_open[1]), int(half_open[2]) - 1)]
    else:
        matches = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part) for part in text.split(",")]
        if None in matches:
            raise UserError(f"{where}: devices are {text!r}, expected a range such as 0-7, 0,2,5 or [0,8)")
        spans = [(int(m[1]), int(m[2] or m[1])) for m in matches]
    highest = RANGES["device_id"][1]
    for first, last in spans:
        if first > last or last > highest:
            raise UserError(f"{where}: devices are {text!r}, expected numbers that rise and lie within 0 to {highest}")
    devices = [i for first, last in spans for i in range(first, last + 1)]
    if len(set(devices)) < len(devices):
        raise UserError(f"{where}: devices are {text!r}, which names one twice; name each once")
    return devices
