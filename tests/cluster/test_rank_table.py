"""Rank tables: each kind of fault is named at its place and alone; merging; samples are what the commands write."""

import json

import pytest

from msllm.cluster import rank_table_check, rank_table_rules
from msllm.cluster.rank_table import Card, merge, parse, read
from msllm.cluster.rank_table_check import faults
from msllm.errors import UserError

GONE = object()


def cluster() -> dict:
    """Version 1.0: two servers with two cards each."""
    servers = [
        {
            "server_id": f"10.0.0.{s}",
            "device": [
                {"device_id": str(i), "device_ip": f"192.168.{i}.{s}", "rank_id": str(2 * s - 2 + i)} for i in (0, 1)
            ],
            "host_nic_ip": "reserve",
        }
        for s in (1, 2)
    ]
    return {"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"}


def super_pods() -> dict:
    """Version 1.2: two super pods of two servers, each with the two dies of one card, and every optional key."""
    servers = [
        {
            "server_id": f"node_{s}",
            "host_ip": f"10.0.0.{s}",
            "device": [
                {
                    "device_id": str(i),
                    "super_device_id": str(10 * (s % 2) + i),
                    "device_ip": f"192.168.{i}.{s}",
                    "device_port": "16666",
                    "backup_device_ip": f"192.168.{1 - i}.{s}",
                    "backup_device_port": "16667",
                    "host_port": str(16670 + i),
                    "rank_id": str(2 * s + i),
                }
                for i in (0, 1)
            ],
        }
        for s in range(4)
    ]
    pods = [
        {"super_pod_id": str(p), "server_list": [{"server_id": f"node_{2 * p}"}, {"server_id": f"node_{2 * p + 1}"}]}
        for p in (0, 1)
    ]
    table = {"version": "1.2", "server_count": "4", "server_list": servers, "super_pod_list": pods}
    return table | {"status": "completed"}


def place(table: dict, path: str) -> tuple[dict | list, str | int]:
    """Returns the owner and the key of a path such as server_list.0.device.1.rank_id."""
    *owners, key = [int(word) if word.isdigit() else word for word in path.split(".")]
    for word in owners:
        table = table[word]
    return table, key


def edited(table: dict, edits: dict) -> dict:
    for path, value in edits.items():
        owner, key = place(table, path)
        if value is GONE:
            del owner[key]
        else:
            owner[key] = value
    return table


S0, S1, S2, S3 = (f"server_list.{i}" for i in range(4))
D00, D01, D10, D11 = (f"{s}.device.{i}" for s in (S0, S1) for i in (0, 1))
POD0, POD1 = "super_pod_list.0", "super_pod_list.1"


def ranks(*values: int) -> dict:
    return {f"server_list.{i // 2}.device.{i % 2}.rank_id": str(rank) for i, rank in enumerate(values)}


# (base, edits, the faults in order: path and a part of the text; w: before a path is a warning)
CASES = {
    "version missing": (cluster, {"version": GONE}, [("version", "is missing; add it")]),
    "version unknown": (cluster, {"version": "1.1"}, [("version", 'is "1.1", expected "1.0" or "1.2"')]),
    "version a number": (cluster, {"version": 1.0}, [("version", 'is 1.0, expected "1.0" or "1.2"')]),
    "status missing": (cluster, {"status": GONE}, [("status", "is missing")]),
    "status initializing": (cluster, {"status": "initializing"}, [("status", 'expected "completed"')]),
    "server_list missing": (
        cluster,
        {"server_list": GONE},
        [("server_list", "is missing"), ("server_count", "is 2 for 0 entries")],
    ),
    "server_list empty": (
        cluster,
        {"server_list": []},
        [("server_list", "is empty"), ("server_count", "is 2 for 0 entries")],
    ),
    "server_list an object": (
        cluster,
        {"server_list": {}},
        [("server_list", "is an object {...}, expected a list"), ("server_count", "is 2 for 0")],
    ),
    "super_pod_list a string": (super_pods, {"super_pod_list": "0"}, [("super_pod_list", "expected a list")]),
    "device an object": (cluster, {f"{S1}.device": {}}, [(f"{S1}.device", "expected a list")]),
    "device_ip a number": (cluster, {f"{D00}.device_ip": 1.5}, [(f"{D00}.device_ip", "is the number 1.5")]),
    "a super pod is a string": (
        super_pods,
        {POD1: "1"},
        [(POD1, "expected an object"), (f"{S2}.server_id", "is in no super pod"), (f"{S3}.server_id", "is in no")],
    ),
    "a super pod's server is a string": (
        super_pods,
        {f"{POD1}.server_list.1": "node_3"},
        [(f"{POD1}.server_list.1", "expected an object"), (f"{S3}.server_id", "is in no super pod")],
    ),
    "a super pod's servers are a string": (
        super_pods,
        {f"{POD1}.server_list": "node_2"},
        [(f"{POD1}.server_list", "expected a list"), (f"{S2}.server_id", "is in no"), (f"{S3}.server_id", "is in no")],
    ),
    "a server is a string": (
        cluster,
        {S1: "10.0.0.2"},
        [(S1, "is a string, expected an object"), ("server_count", "is 2 for 1")],
    ),
    "server_count missing": (cluster, {"server_count": GONE}, [("server_count", "is missing")]),
    "server_count a number": (cluster, {"server_count": 2}, [("server_count", 'put it in quotes: "2"')]),
    "server_count wrong": (
        cluster,
        {"server_count": "3"},
        [("server_count", 'is 3 for 2 entries of server_list; write "2"')],
    ),
    "server_id missing": (cluster, {f"{S0}.server_id": GONE}, [(f"{S0}.server_id", "is missing")]),
    "server_id blank": (cluster, {f"{S0}.server_id": "a b"}, [(f"{S0}.server_id", "a name without spaces")]),
    "server_id long": (cluster, {f"{S0}.server_id": "x" * 65}, [(f"{S0}.server_id", "65 characters, at most 64")]),
    "server twice": (
        cluster,
        {f"{S1}.server_id": "10.0.0.1"},
        [(f"{S1}.server_id", "10.0.0.1 is also that of $.server_list[0]")],
    ),
    "key misspelt": (
        cluster,
        {f"{D00}.rank_id": GONE, f"{D00}.rankid": "0"},
        [(f"{D00}.rank_id", "is missing"), (f"{D00}.rankid", "(did you mean 'rank_id'?); rename it")],
    ),
    "optional key misspelt": (
        super_pods,
        {f"{D00}.backup_device_port": GONE, f"{D00}.backup_device_prt": "1667"},
        [(f"{D00}.backup_device_prt", "did you mean 'backup_device_port'")],
    ),
    "key of another tool": (
        cluster,
        {f"{S0}.container_ip": "10.0.9.9", "total": 1},
        [("w:total", "HCCL ignores it"), (f"w:{S0}.container_ip", "HCCL ignores it")],
    ),
    "key of another tool in super pods": (
        super_pods,
        {f"{POD0}.colour": "1", f"{POD1}.server_list.0.colour": "1"},
        [(f"w:{POD0}.colour", "unknown key"), (f"w:{POD1}.server_list.0.colour", "unknown key")],
    ),
    "device missing": (
        cluster,
        {f"{S1}.device": GONE},
        [(f"{S1}.device", "is missing")],
    ),
    "device empty": (cluster, {f"{S1}.device": []}, [(f"{S1}.device", "is empty")]),
    "a device is null": (
        cluster,
        {D11: None},
        [(D11, "is null, expected an object"), ("w:server_list", "servers have 2, 1 devices")],
    ),
    "device_id missing": (cluster, {f"{D01}.device_id": GONE}, [(f"{D01}.device_id", "is missing")]),
    "device_id a number": (
        cluster,
        {f"{D01}.device_id": 1},
        [(f"{D01}.device_id", 'is the number 1, expected a string; put it in quotes: "1"')],
    ),
    "device_id true": (
        cluster,
        {f"{D01}.device_id": True},
        [(f"{D01}.device_id", "is true or false, expected a string")],
    ),
    "device_id no number": (
        cluster,
        {f"{D01}.device_id": "one"},
        [(f"{D01}.device_id", 'is "one", expected a whole number')],
    ),
    "device_id out of range": (cluster, {f"{D01}.device_id": "16"}, [(f"{D01}.device_id", "is 16, expected 0 to 15")]),
    "device twice": (
        cluster,
        {f"{D01}.device_id": "0"},
        [(f"{D01}.device_id", "0 is also that of $.server_list[0].device[0]")],
    ),
    "device_ip invalid": (
        cluster,
        {f"{D01}.device_ip": "192.168.1.256"},
        [(f"{D01}.device_ip", 'is "192.168.1.256", expected an IPv4 or IPv6 address')],
    ),
    "device_ip twice": (
        cluster,
        {f"{D10}.device_ip": "192.168.0.1"},
        [(f"{D10}.device_ip", "192.168.0.1 is also that of $.server_list[0].device[0]")],
    ),
    "device_ip twice in two spellings": (
        cluster,
        {f"{d}.device_ip": ip for d, ip in zip((D00, D01, D10, D11), ("fd00::1", "fd00::2", "FD00:0::1", "fd00::3"))},
        [(f"{D10}.device_ip", "is also that of $.server_list[0].device[0]")],
    ),
    "device_ip loopback": (cluster, {f"{D01}.device_ip": "127.0.0.1"}, [(f"{D01}.device_ip", "(loopback)")]),
    "device_ip unspecified": (
        cluster,
        {f"{D01}.device_ip": "0.0.0.0"},
        [(f"{D01}.device_ip", "(unspecified)")],
    ),
    "device_ip multicast": (cluster, {f"{D01}.device_ip": "224.0.0.1"}, [(f"{D01}.device_ip", "(multicast)")]),
    "device_ip missing": (
        cluster,
        {f"{D11}.device_ip": GONE},
        [(f"{D11}.device_ip", "with several servers each device needs it")],
    ),
    "device_ip missing in super pods": (
        super_pods,
        {f"{D11}.device_ip": GONE, f"{D10}.backup_device_ip": GONE},
        [(f"{D11}.device_ip", "with several super pods each device needs it")],
    ),
    "IPv4 and IPv6": (
        cluster,
        {f"{D11}.device_ip": "fd00::1"},
        [(f"{D11}.device_ip", "is IPv6, that of $.server_list[0].device[0] is IPv4")],
    ),
    "IPv6 and IPv4": (
        cluster,
        {f"{D00}.device_ip": "fd00::1"},
        [(f"{d}.device_ip", "is IPv4, that of $.server_list[0].device[0] is IPv6") for d in (D01, D10, D11)],
    ),
    "rank_id a number": (cluster, {f"{D01}.rank_id": 1}, [(f"{D01}.rank_id", 'put it in quotes: "1"')]),
    "rank_id with a zero before": (
        cluster,
        {f"{D01}.rank_id": "01"},
        [(f"{D01}.rank_id", 'is "01", expected a whole number')],
    ),
    "rank twice": (
        cluster,
        ranks(0, 1, 1, 2),
        [(f"{D10}.rank_id", "1 is also that of $.server_list[0].device[1]; each device has its own, 0 to 3")],
    ),
    "ranks with a gap": (
        cluster,
        ranks(0, 1, 2, 4),
        [(f"{D11}.rank_id", "is 4; 4 devices have the ranks 0 to 3 without a gap; missing: 3")],
    ),
    "ranks from 1": (cluster, ranks(1, 2, 3, 4), [(f"{D11}.rank_id", "without a gap; missing: 0")]),
    "ranks of two servers mixed": (
        cluster,
        ranks(0, 2, 1, 3),
        [(f"{S0}.device", "other servers' ranks (1)"), (f"{S1}.device", "other servers' ranks (2)")],
    ),
    "ranks against the order of devices": (
        cluster,
        ranks(1, 0, 2, 3),
        [(f"w:{S0}.device", "are 1, 0; neighbours talk faster")],
    ),
    "servers of different size": (cluster, {D11: GONE}, [("w:server_list", "servers have 2, 1 devices")]),
    "cards of both halves of a server": (
        cluster,
        {f"{D01}.device_id": "4", f"{D11}.device_id": "7"},
        [(f"w:{S0}.device", "devices are 0, 4; Atlas 800 of the first generation"), (f"w:{S1}.device", "0, 7;")],
    ),
    "three cards of a server": (
        cluster,
        {f"{S0}.device": [{"device_id": str(i), "device_ip": f"192.168.{i}.1", "rank_id": str(i)} for i in range(3)]}
        | {f"{D10}.rank_id": "3", f"{D11}.rank_id": "4"},
        [(f"w:{S0}.device", "devices are 0, 1, 2; Atlas 800"), ("w:server_list", "servers have 3, 2 devices")],
    ),
    "rank_id of many digits": (cluster, {f"{D01}.rank_id": "9" * 5000}, [(f"{D01}.rank_id", "a whole number")]),
    "super pods in 1.0": (
        super_pods,
        {"version": "1.0"},
        [("super_pod_list", "does not belong to this $.version")]
        + [
            (f"{server}.device.{i}.{key}", "does not belong to this $.version")
            for server in (S0, S1, S2, S3)
            for i in (0, 1)
            for key in ("super_device_id", "backup_device_ip", "backup_device_port")
        ],
    ),
    "host_nic_ip in 1.2": (
        super_pods,
        {f"{S0}.host_nic_ip": "reserve"},
        [(f"{S0}.host_nic_ip", "does not belong to this $.version")],
    ),
    "host_nic_ip a list": (
        cluster,
        {f"{S0}.host_nic_ip": []},
        [(f"{S0}.host_nic_ip", "is a list [...], expected a string")],
    ),
    "host_ip invalid": (
        super_pods,
        {f"{S0}.host_ip": "node_0"},
        [(f"{S0}.host_ip", 'is "node_0", expected an IPv4 or IPv6')],
    ),
    "host_ip twice": (
        super_pods,
        {f"{S1}.host_ip": "10.0.0.0"},
        [(f"{S1}.host_ip", "10.0.0.0 is also that of $.server_list[0]")],
    ),
    "super_device_id missing": (
        super_pods,
        {f"{D01}.super_device_id": GONE},
        [(f"{D01}.super_device_id", "is missing; add the SDID")],
    ),
    "super_device_id no number": (
        super_pods,
        {f"{D01}.super_device_id": "0x1"},
        [(f"{D01}.super_device_id", "expected a whole number")],
    ),
    "super_device_id out of range": (
        super_pods,
        {f"{D01}.super_device_id": str(2**32 - 1)},
        [(f"{D01}.super_device_id", "expected 0 to 4294967294")],
    ),
    "super_device_id twice in a super pod": (
        super_pods,
        {f"{D11}.super_device_id": "1"},
        [(f"{D11}.super_device_id", "1 is also that of $.server_list[0].device[1]; each device of a super pod")],
    ),
    "port 0": (super_pods, {f"{D01}.device_port": "0"}, [(f"{D01}.device_port", "is 0, expected 1 to 65535")]),
    "port high": (super_pods, {f"{D01}.host_port": "65536"}, [(f"{D01}.host_port", "is 65536, expected 1 to 65535")]),
    "backup port no number": (
        super_pods,
        {f"{D01}.backup_device_port": "-1"},
        [(f"{D01}.backup_device_port", "expected a whole number")],
    ),
    "port of the system": (
        super_pods,
        {f"{D01}.backup_device_port": "1023"},
        [(f"w:{D01}.backup_device_port", "the system's ports")],
    ),
    "host_port twice": (
        super_pods,
        {f"{D01}.host_port": "16670"},
        [(f"{D01}.host_port", "each device of a server has its own")],
    ),
    "backup of another card": (
        super_pods,
        {f"{D00}.backup_device_ip": "192.168.7.7"},
        [(f"{D00}.backup_device_ip", "is 192.168.7.7, expected the device_ip of device 1, the other die of its card")],
    ),
    "backup of another card, whose die is not in the table": (
        super_pods,
        {f"{S3}.device.0": GONE, f"{S3}.device.0.backup_device_ip": "192.168.1.0", f"{S3}.device.0.rank_id": "6"}
        | {f"{D00}.backup_device_ip": GONE},
        [
            (f"{S3}.device.0.backup_device_ip", "is 192.168.1.0, expected the device_ip of device 0"),
            ("w:server_list", "2, 2, 2, 1 devices"),
        ],
    ),
    "backup twice": (
        super_pods,
        {f"{D01}.backup_device_ip": "192.168.1.0"},
        [(f"{D01}.backup_device_ip", "is also that of"), (f"{D01}.backup_device_ip", "device_ip of device 0")],
    ),
    "backup port taken": (
        super_pods,
        {f"{D00}.backup_device_port": "16666"},
        [(f"{D00}.backup_device_port", "is also device_port of $.server_list[0].device[1]")],
    ),
    "super_pod_list missing": (super_pods, {"super_pod_list": GONE}, [("super_pod_list", 'set $.version to "1.0"')]),
    "super_pod_list empty": (super_pods, {"super_pod_list": []}, [("super_pod_list", "is empty")]),
    "super_pod_id missing": (super_pods, {f"{POD0}.super_pod_id": GONE}, [(f"{POD0}.super_pod_id", "is missing")]),
    "super_pod_id a number": (super_pods, {f"{POD0}.super_pod_id": 0}, [(f"{POD0}.super_pod_id", "put it in quotes")]),
    "super pod twice": (
        super_pods,
        {f"{POD1}.super_pod_id": "0"},
        [(f"{POD1}.super_pod_id", "put its servers into one entry")],
    ),
    "super pod without servers": (
        super_pods,
        {f"{POD1}.server_list": []},
        [
            (f"{POD1}.server_list", "is empty"),
            (f"{S2}.server_id", "is in no super pod"),
            (f"{S3}.server_id", "is in no"),
        ],
    ),
    "super pod lacks server_list": (
        super_pods,
        {f"{POD1}.server_list": GONE},
        [
            (f"{POD1}.server_list", "is missing"),
            (f"{S2}.server_id", "is in no super pod"),
            (f"{S3}.server_id", "is in no"),
        ],
    ),
    "super pod's server without a name": (
        super_pods,
        {f"{POD1}.server_list.1.server_id": GONE},
        [(f"{POD1}.server_list.1.server_id", "is missing"), (f"{S3}.server_id", "node_3 is in no super pod")],
    ),
    "super pod of an unknown server": (
        super_pods,
        {f"{POD1}.server_list.1.server_id": "node_33"},
        [
            (f"{POD1}.server_list.1.server_id", "node_33 is no server_id of server_list (did you mean 'node_3'?)"),
            (f"{S3}.server_id", "node_3 is in no super pod"),
        ],
    ),
    "server in two super pods": (
        super_pods,
        {f"{POD1}.server_list": [{"server_id": f"node_{i}"} for i in (2, 3, 1)]},
        [(f"{POD1}.server_list.2.server_id", "node_1 is also that of $.super_pod_list[0].server_list[1]")],
    ),
    "ranks of two super pods mixed": (
        super_pods,
        ranks(0, 1, 4, 5, 2, 3, 6, 7),
        [(f"{POD0}.server_list", "other super pods' ranks (2, 3)"), (f"{POD1}.server_list", "ranks (4, 5)")],
    ),
    "several at once": (
        cluster,
        {"server_count": "1", f"{D01}.device_id": "0", f"{D11}.rank_id": "3", f"{D10}.device_ip": "192.168.0.1"},
        [("server_count", "is 1"), (f"{D01}.device_id", "is also"), (f"{D10}.device_ip", "is also")],
    ),
}


def json_path(path: str) -> str:
    return "$" + "".join(f"[{word}]" if word.isdigit() else f".{word}" for word in path.split("."))


def table_of(case: str) -> dict:
    base, edits, _ = CASES[case]
    return edited(base(), edits)


@pytest.mark.parametrize("base", [cluster, super_pods])
def test_a_right_table_has_no_fault(base):
    assert faults(base()) == []


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_fault_is_named_at_its_place_and_nothing_else(case):
    expected = CASES[case][2]
    found = faults(table_of(case))
    paths = [(f.warning, f.path) for f in found]
    assert paths == [(path.startswith("w:"), json_path(path.removeprefix("w:"))) for path, _ in expected]
    for fault, (_, text) in zip(found, expected):
        assert text in fault.text
        assert fault.warning or "; " in fault.text  # what is wrong; the next step


@pytest.mark.parametrize("rule", rank_table_rules.RULES, ids=lambda rule: rule.__name__)
def test_without_a_rule_some_case_goes_unnoticed(rule, monkeypatch):
    rest = [r for r in rank_table_rules.RULES if r is not rule]
    names = [case for case in CASES if list(rule(rank_table_rules.View(table_of(case))))]
    before = {case: faults(table_of(case)) for case in names}
    monkeypatch.setattr(rank_table_check, "RULES", rest)
    assert any(faults(table_of(case)) != before[case] for case in names)


def constraints(node: object):
    """Yields each constraint in the schema as (id of the object it is in, keyword, entry of ``required``)."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "required":
            yield from ((id(node), key, entry) for entry in value)
        elif key in ("type", "enum", "pattern", "minItems", "maxLength", "anyOf", "not"):
            yield id(node), key, None
        elif key not in ("if", "not_in_1.0", "not_in_1.2"):
            yield from constraints(value)


@pytest.mark.parametrize("key", ["device_port", "backup_device_port", "host_port"])
def test_ports_may_be_1_to_65535_and_should_not_be_the_systems(key):
    other = {"device_port": "backup_device_port", "backup_device_port": "device_port"}.get(key)
    for port, warned in ((1, True), (1023, True), (1024, False), (65535, False)):
        table = edited(super_pods(), {f"{D00}.{key}": str(port)} | ({f"{D01}.{other}": "16668"} if other else {}))
        assert [f.warning for f in faults(table)] == [True] * warned


def test_what_is_allowed_has_no_fault():
    assert faults(edited(super_pods(), {f"{D00}.super_device_id": str(2**32 - 2)})) == []
    assert faults(edited(cluster(), {f"{D00}.device_id": "14", f"{D01}.device_id": "15"})) == []
    assert faults(edited(cluster(), {f"{S0}.server_id": "x" * 64})) == []
    assert faults(edited(single(0), {f"{D00}.device_ip": GONE, f"{D01}.device_ip": GONE})) == []
    one_pod = single(0, super_pods)
    for device in one_pod["server_list"][0]["device"]:
        del device["device_ip"], device["backup_device_ip"]
    assert faults(one_pod) == []
    halves = {f"{D00}.backup_device_ip": GONE, f"{D01}.backup_device_ip": GONE, f"{D01}.device_id": "4"}
    assert faults(edited(super_pods(), halves)) == []  # the groups of four are those of version 1.0's servers


def test_long_lists_of_ranks_are_cut():
    assert rank_table_rules._short(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert rank_table_rules._short(range(9)) == "0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_a_table_that_is_no_object_has_one_fault():
    assert [str(f) for f in faults([cluster()])] == ["$: is a list [...], expected an object {...}; correct it"]


def test_each_constraint_of_the_schema_is_violated_in_some_case():
    validator = rank_table_check._validator()
    violated = {
        (id(e.schema), e.validator, e.message.split("'")[1] if e.validator == "required" else None)
        for table in ([], *(table_of(case) for case in CASES))
        for e in validator.iter_errors(table)
    }
    listed = set(constraints(validator.schema))
    assert len(listed) > 30 and listed == violated


def test_read_gives_cards_by_rank_servers_and_super_pods(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(edited(cluster(), ranks(2, 3, 0, 1))))
    table = read(path)
    assert [card.rank for card in table.cards] == [0, 1, 2, 3]
    assert table.cards[2] == Card(rank=2, device_id=0, device_ip="192.168.0.1")
    assert [card.device_ip for card in table.cards_of("10.0.0.2")] == ["192.168.0.2", "192.168.1.2"]
    assert (table.version, table.super_pods, table.summary) == ("1.0", {}, "4 cards on 2 servers")
    with pytest.raises(
        UserError, match=r"server 10.0.0.3 is not in the rank table \(did you mean '10.0.0.\d'\?\); in it"
    ):
        table.cards_of("10.0.0.3")
    path.write_text(json.dumps(super_pods()))
    table = read(path)
    assert [[s.server_id for s in pod] for pod in table.super_pods.values()] == [
        ["node_0", "node_1"],
        ["node_2", "node_3"],
    ]
    assert table.cards_of("node_3")[0].super_device_id == "10"
    assert parse(table.to_json()) == table


def test_read_refuses_what_is_wrong_but_not_a_warning(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_of("several at once")))
    with pytest.raises(UserError, match=r"\$.server_count: is 1 for 2 .* \(and 2 more\); msllm ranktable check"):
        read(path)
    path.write_text(json.dumps(table_of("device twice")))
    with pytest.raises(UserError, match=r"see ls /dev/davinci\*; msllm ranktable check .* names all of them"):
        read(path)
    path.write_text(json.dumps(table_of("servers of different size")))
    assert len(read(path).cards) == 3
    path.write_text('{"version": "1.0", // the format\n}')
    with pytest.raises(UserError, match=r"is not JSON: .* at line 1, column 20"):
        read(path)


def single(server: int, base=cluster) -> dict:
    """The table that one of the servers makes for itself."""
    table = base()
    entry = table["server_list"][server]
    for rank, device in enumerate(entry["device"]):
        device["rank_id"] = str(rank)
    table |= {"server_count": "1", "server_list": [entry]}
    if base is super_pods:
        pod = next(p for p in table["super_pod_list"] if {"server_id": entry["server_id"]} in p["server_list"])
        table["super_pod_list"] = [pod | {"server_list": [{"server_id": entry["server_id"]}]}]
    assert faults(table) == []
    return table


@pytest.mark.parametrize("base", [cluster, super_pods])
def test_tables_of_single_servers_merge_into_that_of_the_cluster(base):
    count = len(base()["server_list"])
    tables = [single(i, base) for i in range(count)]
    assert merge(tables, [f"{i}.json" for i in range(count)]) == base()
    if base is cluster:
        turned = merge(tables[::-1], ["1.json", "0.json"])
        assert [s["server_id"] for s in turned["server_list"]] == ["10.0.0.2", "10.0.0.1"]
        assert [d["rank_id"] for s in turned["server_list"] for d in s["device"]] == ["0", "1", "2", "3"]


def test_merge_refuses_what_does_not_go_together():
    def refused(*tables: dict, match: str) -> None:
        with pytest.raises(UserError, match=match):
            merge(tables, [f"{name}.json" for name in "abcd"[: len(tables)]])

    first, second = single(0), single(1)
    refused(first, second, first, match="server_id 10.0.0.1 is in a.json and in c.json; leave one")
    edited(second, {f"{D01}.device_ip": "192.168.1.1"})
    refused(first, second, match="device_ip 192.168.1.1 is in a.json and in b.json")
    refused(first, single(0, super_pods), match="b.json has version 1.2, a.json has 1.0")
    third = edited(single(1, super_pods), {f"{S0}.host_ip": "10.0.0.0"})
    refused(single(0, super_pods), third, match="host_ip 10.0.0.0 is in a.json and in b.json")
    third = edited(single(1, super_pods), {f"{D00}.super_device_id": "0"})
    refused(
        single(0, super_pods), third, match=r"merged table: \$.server_list\[1\].device\[0\].super_device_id: 0 is also"
    )
    mixed = [single(i, super_pods) for i in (0, 2, 1, 3)]
    refused(*mixed, match="other super pods' ranks .* give them in another order")
    bare = [edited(single(i), {f"{D00}.device_ip": GONE}) for i in (0, 1)]
    refused(*bare, match="device_ip: is missing; with several servers")
