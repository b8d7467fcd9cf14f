"""What the launch scripts ask about the machine they run on; standard library only, prints lines for a shell.

this_machine.py master ADDRESS PORT NODE_RANK   nothing where the scheduler can listen there, or may not be here
this_machine.py server TABLE [SERVER_ID]        a line a card of this server: ranks of the whole table, rank, device
"""

import errno
import json
import socket
import sys


class Refused(Exception):
    """One line for the user."""


def bind(address: str, port: int = 0) -> int:
    """Returns 0 where a server of this machine can listen at an address, else the error's number."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what an earlier job left in TIME_WAIT is free
            s.bind(place)
    except OSError as e:
        return e.errno or errno.EADDRNOTAVAIL
    return 0


def check_master(address: str, port: int, node_rank: int) -> None:
    """Refuses a node 0 that is not at the master's address, another node that is, and a port in use."""
    here = bind(address) == 0
    if node_rank == 0 and not here:
        raise Refused(
            f"this is node 0, and the master's address {address} is none of this machine's; start node 0 on the master"
        )
    if node_rank > 0 and here:
        raise Refused(f"this is node {node_rank}, and the master's address {address} is this machine's: that is node 0")
    if node_rank == 0 and (problem := bind(address, port)):
        raise Refused(f"port {port} of {address} cannot be used: {errno.errorcode.get(problem, problem)}; give --port")


def cards_here(table: str, server_id: str = "") -> list[tuple[int, str, str]]:
    """Returns (ranks in all, rank, device) of each card of this machine's server.

    That is the server of this id, or the only one, or the one with an address of this machine.
    """
    try:
        with open(table, encoding="utf-8") as file:
            servers = json.load(file)["server_list"]
        ids = [server["server_id"] for server in servers]
        world = sum(len(server["device"]) for server in servers)
        if server_id and server_id not in ids:
            raise Refused(f"--server-id is {server_id!r}, and {table} has {', '.join(ids)}")
        mine = [s for s in servers if s["server_id"] == server_id] if server_id else servers
        if len(mine) > 1:
            mine = [s for s in servers if any(bind(s[k]) == 0 for k in ("server_id", "host_ip") if k in s)]
        if len(mine) != 1:
            raise Refused(
                f"{len(mine)} of the servers in {table} ({', '.join(ids)}) have an address of this machine; "
                f"give --server-id"
            )
        return [(world, device["rank_id"], device["device_id"]) for device in mine[0]["device"]]
    except OSError as e:
        raise Refused(f"{table} cannot be read: {e.strerror}; name a rank table") from None
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{table} is no rank table; msllm ranktable check {table} says what is wrong") from None


def main(what: str, *arguments: str) -> None:
    """Runs one of the two questions."""
    if what == "master":
        check_master(arguments[0], int(arguments[1]), int(arguments[2]))
    else:
        for card in cards_here(*arguments):
            print(*card)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
