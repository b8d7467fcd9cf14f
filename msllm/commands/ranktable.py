"""msllm ranktable: rank tables from what servers know of their cards, merged, checked and shown."""

import re
import sys
from pathlib import Path
from typing import Literal

from msllm.errors import UserError


def generate(
    devices: str | None = None,
    server_ip: str | None = None,
    hosts: str | None = None,
    version: Literal["1.0", "1.2"] | None = None,
    super_pod_id: str | None = None,
    hccn_tool: str | None = None,
    hccn_conf: str | None = None,
    npu_smi: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the rank table of this server, or of all servers in a list.

    Args:
        devices: which of this server's devices: 0-7 (what it is when not given), 0,2,5 or [0,8).
        server_ip: this server's address; not given, that of its host name or of its default route.
        hosts: text file with a line a server, such as 10.0.0.1 device_ip=192.168.100.101,192.168.101.101 (other keys:
            rank_tables/README.md), in place of the options of this server.
        version: 1.0, or 1.2 for super pods (Atlas A3); not given, 1.2 where a super pod is named.
        super_pod_id: this server's super pod; not given in version 1.2, what npu-smi prints.
        hccn_tool: the program to ask for addresses; not given, that on PATH or of the driver, else /etc/hccn.conf.
        hccn_conf: file with address_N=... to read in its place.
        npu_smi: the program to ask for a device's place in its super pod; not given, that on PATH.
        output: file to write; not given, hccl_8p_01234567_ADDRESS.json for a server, hccl_2s_16p.json for several.
        overwrite: replace the file where it exists.
    """
    from msllm.cluster.host_list import read_host_list
    from msllm.cluster.rank_table import save
    from msllm.cluster.rank_table_check import faults, refuse_faults

    if hosts is not None:
        of_this_server = {
            "devices": devices,
            "server_ip": server_ip,
            "super_pod_id": super_pod_id,
            "hccn_tool": hccn_tool,
            "hccn_conf": hccn_conf,
            "npu_smi": npu_smi,
        }
        if given := [f"--{name}" for name, value in of_this_server.items() if value is not None]:
            raise UserError(f"{', '.join(given)} with --hosts, which says it for each server; leave one of them out")
        table = read_host_list(hosts)
        if version not in (None, table.version):
            raise UserError(
                f"version {version}, but {hosts} names {'super pods' if table.version == '1.2' else 'no super pod'}; "
                f"leave --version out, or change super_pod_id there"
            )
        print(f"servers and device addresses from {hosts}", file=sys.stderr)
    else:
        table = _this_server(devices, server_ip, version, super_pod_id, hccn_tool, hccn_conf, npu_smi)
    made = table.to_json()
    refuse_faults(made, f"the table of {hosts or table.servers[0].server_id}", "correct what it is made from")
    for warning in faults(made):
        print(warning, file=sys.stderr)
    server = table.servers[0]
    numbers = "".join(str(card.device_id) for card in server.cards)
    single = re.sub(r"[^\w.-]", "_", f"hccl_{len(server.cards)}p_{numbers}_{server.server_id}.json")
    path = output or (single if len(table.servers) == 1 else _several(table))
    save(path, made, overwrite)
    print(f"saved {path}: {table.summary}")


def _this_server(
    devices: str | None,
    server_ip: str | None,
    version: str | None,
    super_pod_id: str | None,
    hccn_tool: str | None,
    hccn_conf: str | None,
    npu_smi: str | None,
):
    from msllm.cluster.hccn import device_addresses, host_address, super_pod_place
    from msllm.cluster.host_list import parse_devices
    from msllm.cluster.rank_table import Card, RankTable, Server

    version = version or ("1.0" if super_pod_id is None else "1.2")
    if version == "1.0" and (super_pod_id, npu_smi) != (None, None):
        raise UserError("super_pod_id and npu_smi are of version 1.2; leave them out, or use --version 1.2")
    if hccn_tool is not None and hccn_conf is not None:
        raise UserError("--hccn_tool and --hccn_conf both name the source of addresses; leave one of them out")
    numbers = parse_devices("0-7" if devices is None else devices)
    if server_ip is None:
        server_ip, told = host_address()
        print(told, file=sys.stderr)
    addresses, told = device_addresses(numbers, hccn_tool, hccn_conf)
    print(told, file=sys.stderr)
    if version == "1.0":
        cards = tuple(Card(rank, i, device_ip=addresses[i]) for rank, i in enumerate(numbers))
        return RankTable("1.0", (Server(server_ip, cards),))
    places = {i: super_pod_place(i, npu_smi or "npu-smi") for i in numbers}
    pods = {pod for _, pod in places.values()}
    if super_pod_id is None and len(pods) > 1:
        raise UserError(f"npu-smi names the super pods {', '.join(sorted(pods))} for one server; give --super_pod_id")
    cards = tuple(Card(rank, i, super_device_id=places[i][0], device_ip=addresses[i]) for rank, i in enumerate(numbers))
    return RankTable("1.2", (Server(server_ip, cards, server_ip, super_pod_id or pods.pop()),))


def merge(tables: list[str] | None = None, output: str | None = None, overwrite: bool = False) -> None:
    """Writes one rank table for all servers of several tables.

    Args:
        tables: rank tables; the ranks of the second begin where those of the first end, and so on.
        output: file to write; not given, hccl_2s_16p.json for two servers with sixteen cards.
        overwrite: replace the file where it exists.
    """
    from msllm.cluster import rank_table
    from msllm.cluster.rank_table_check import load

    if not tables or len(tables) < 2:
        raise UserError(f"rank tables to merge: {len(tables or [])}, expected two or more; name them after merge")
    twice = {path for path in tables if tables.count(path) > 1}
    if twice:
        raise UserError(f"{min(twice)} is named twice, and its servers are on one table once; leave one out")
    merged = rank_table.merge([load(path) for path in tables], tables)
    table = rank_table.parse(merged)
    path = output or _several(table)
    rank_table.save(path, merged, overwrite)
    print(f"saved {path}: {table.summary}")


def _several(table) -> str:
    return f"hccl_{len(table.servers)}s_{len(table.cards)}p.json"


def check(table: str | None = None) -> int:
    """Prints every rule that a rank table violates, one line each: its place, what is wrong, the next step.

    Args:
        table: a rank table.

    Returns:
        0, also where there are warnings alone; 2 where HCCL would refuse the table or misread it.
    """
    from msllm.cluster.rank_table import parse
    from msllm.cluster.rank_table_check import faults
    from msllm.files import read_json

    value = read_json(_named(table, "check"))
    found = faults(value)
    for fault in found:
        print(fault)
    errors = sum(not fault.warning for fault in found)
    if errors:
        print(f"{errors} {'fault' if errors == 1 else 'faults'} in {table}", file=sys.stderr)
        return 2
    print(f"ok: {parse(value).summary}")
    return 0


def show(table: str | None = None) -> None:
    """Prints a rank table as a table: rank, server, device, address; in version 1.2 the super pod too.

    Args:
        table: a rank table.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from msllm.cluster.rank_table import read

    ranks = read(_named(table, "show"))
    super_pods = ranks.version == "1.2"
    print(f"{Path(table).name}: {ranks.summary}, version {ranks.version}")
    screen = Table(box=box.SIMPLE_HEAD)
    for head in ("rank", "server", "device", "address") + (("super pod", "super device") if super_pods else ()):
        screen.add_column(head, justify="left" if head in ("server", "address") else "right", overflow="fold")
    for server in ranks.servers:
        for card in server.cards:
            cells = [str(card.rank), server.server_id, str(card.device_id), card.device_ip or "-"]
            screen.add_row(*cells, *((server.super_pod_id, card.super_device_id) if super_pods else ()))
        screen.add_section()
    Console().print(screen)


def _named(table: str | None, action: str) -> str:
    if not table:
        raise UserError(f"no rank table; name one: msllm ranktable {action} hccl_1s_8p.json")
    return table
