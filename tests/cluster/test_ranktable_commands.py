"""msllm ranktable on the command line; servers' programs are fakes that print what the real ones do."""

import json
import socket
from pathlib import Path

import pytest

from msllm.cli import main
from msllm.cluster import hccn
from msllm.cluster.host_list import parse_devices
from msllm.errors import UserError

SAMPLES = Path(__file__).parents[2] / "rank_tables"

HCCN_TOOL = """#!/bin/sh
# hccn_tool -i N -ip -g
[ "$1 $3 $4" = "-i -ip -g" ] || exit 9
case "$2" in
  [0-7]) printf 'ipaddr:192.168.%d.101\\nnetmask:255.255.255.0\\n' "$2" ;;
  8) printf 'hccn_tool is busy, please try again.\\n'; exit 1 ;;
  9) printf 'ipaddr:\\nnetmask:\\n' ;;
  *) ;;
esac
"""

NPU_SMI = """#!/bin/sh
# npu-smi info -t spod-info -i CARD -c DIE
[ "$1 $2 $3 $4 $6" = "info -t spod-info -i -c" ] || exit 9
[ "$5" -lt 2 ] || { echo "This device does not support querying spod-info."; exit 0; }
sdid=$(( (27 << 22) | ($5 << 18) | ($7 << 16) | (2 * $5 + $7) ))
printf '\\tSDID                           : %d\\n' "$sdid"
printf '\\tSuper Pod Size                 : 384\\n'
printf '\\tSuper Pod ID                   : %d\\n' "$(( $5 * POD ))"
printf '\\tServer Index                   : 27\\n'
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with bin/ of fake programs on PATH, and without the real places."""
    (tmp_path / "bin").mkdir()
    for name, text in (("hccn_tool", HCCN_TOOL), ("npu-smi", NPU_SMI)):
        program = tmp_path / "bin" / name
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("POD", "0")
    monkeypatch.setattr(hccn, "HCCN_TOOL", str(tmp_path / "none" / "hccn_tool"))
    monkeypatch.setattr(hccn, "HCCN_CONF", str(tmp_path / "etc_hccn.conf"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs msllm ranktable and returns (exit code, standard output, standard error)."""

    def call(*words) -> tuple[int, str, str]:
        code = main(["ranktable", *map(str, words)])
        return code, *capsys.readouterr()

    return call


def test_devices_are_ranges_lists_or_as_hccl_tools_wrote_them():
    assert parse_devices("0-7") == parse_devices("[0,8)") == parse_devices(" [ 0, 8 ) ") == list(range(8))
    assert parse_devices("0,2,5") == [0, 2, 5]
    assert parse_devices("4-5,0") == [4, 5, 0]
    assert parse_devices("15") == [15]
    for text, match in {
        "0-16": "within 0 to 15",
        "5-3": "numbers that rise",
        "[4,4)": "numbers that rise",
        "0,0": "names one twice",
        "0-3,2": "names one twice",
        "[0,8]": "expected a range",
        "a": "expected a range",
        "": "expected a range",
    }.items():
        with pytest.raises(UserError, match=match):
            parse_devices(text)


def test_generate_asks_hccn_tool_and_writes_the_table_under_the_old_name(folder, run):
    code, out, err = run("generate", "--server_ip", "10.0.0.1")
    assert (code, out) == (0, "saved hccl_8p_01234567_10.0.0.1.json: 8 cards on 1 server\n")
    assert err == f"device addresses from {folder}/bin/hccn_tool\n"
    assert json.loads(Path("hccl_8p_01234567_10.0.0.1.json").read_text()) == {
        "version": "1.0",
        "server_count": "1",
        "server_list": [
            {
                "server_id": "10.0.0.1",
                "device": [{"device_id": str(i), "device_ip": f"192.168.{i}.101", "rank_id": str(i)} for i in range(8)],
                "host_nic_ip": "reserve",
            }
        ],
        "status": "completed",
    }
    code, out, err = run("generate", "--server_ip", "10.0.0.1", "--devices", "[4,6)", "--output", "two.json")
    assert json.loads(Path("two.json").read_text())["server_list"][0]["device"] == [
        {"device_id": "4", "device_ip": "192.168.4.101", "rank_id": "0"},
        {"device_id": "5", "device_ip": "192.168.5.101", "rank_id": "1"},
    ]


def test_generate_says_what_it_is_warned_of(folder, run):
    code, _, err = run("generate", "--server_ip", "10.0.0.1", "--devices", "2-5", "--output", "t.json")
    assert code == 0 and "warning: $.server_list[0].device: devices are 2, 3, 4, 5; Atlas 800" in err
    for devices in ("0-3", "4-7", "6-7", "0-7"):
        words = ("generate", "--server_ip", "10.0.0.1", "--devices", devices, "--output", "t.json", "--overwrite")
        assert run(*words)[2] == f"device addresses from {folder}/bin/hccn_tool\n"


def test_generate_never_replaces_a_file_unasked(folder, run):
    Path("t.json").write_text("mine")
    words = ("generate", "--server_ip", "10.0.0.1", "--devices", "0", "--output", "t.json")
    code, _, err = run(*words)
    assert code == 2 and "error: t.json exists; choose another --output, or add --overwrite" in err
    assert Path("t.json").read_text() == "mine"
    assert run(*words, "--overwrite")[0] == 0 and json.loads(Path("t.json").read_text())


@pytest.mark.parametrize(
    ("device", "failure"),
    [
        (8, "ended with code 1: 'hccn_tool is busy, please try again.'"),
        (9, "-i 9 -ip -g printed no address but 'ipaddr:'"),
        (10, "-i 10 -ip -g printed no address but nothing"),
    ],
)
def test_where_hccn_tool_fails_the_file_of_the_driver_is_read_and_that_is_said(folder, run, device, failure):
    words = ("generate", "--server_ip", "10.0.0.1", "--devices", f"0,{device}", "--output", "t.json", "--overwrite")
    code, _, err = run(*words)
    assert code == 2 and failure in err and "etc_hccn.conf" in err and "use --hosts" in err
    Path("etc_hccn.conf").write_text(
        f"address_0=192.168.50.1\nnetmask_0=255.255.255.0\naddress_{device}=192.168.50.2\naddress_x=1\n"
    )
    code, _, err = run(*words)
    assert code == 0 and failure in err and f"device addresses from {folder}/etc_hccn.conf" in err
    devices = json.loads(Path("t.json").read_text())["server_list"][0]["device"]
    assert [d["device_ip"] for d in devices] == ["192.168.50.1", "192.168.50.2"]
    code, _, err = run(*words, "--hccn_tool", folder / "bin" / "hccn_tool")
    assert code == 2 and failure in err and "name another --hccn_tool, or --hccn_conf" in err


def test_a_tool_that_hangs_or_is_missing_is_named(folder, run, monkeypatch):
    monkeypatch.setattr(hccn, "TIME_LIMIT", 0.05)
    (folder / "bin" / "hccn_tool").write_text("#!/bin/sh\nexec sleep 5\n")
    words = ("generate", "--server_ip", "10.0.0.1", "--devices", "0")
    assert "-i 0 -ip -g did not end within 0.05 s" in run(*words)[2]
    (folder / "bin" / "hccn_tool").unlink()
    assert f"cannot run {folder}/none/hccn_tool: No such file" in run(*words)[2]
    assert "cannot run elsewhere: No such file" in run(*words, "--hccn_tool", "elsewhere")[2]
    assert "both name the source of addresses" in run(*words, "--hccn_tool", "a", "--hccn_conf", "b")[2]


def test_faults_of_hccn_conf_are_named(folder, run):
    def error(text: str) -> str:
        Path("my.conf").write_text(text)
        code, _, err = run("generate", "--server_ip", "10.0.0.1", "--devices", "0-1", "--hccn_conf", "my.conf")
        assert code == 2
        return err

    assert "my.conf has no address_N of device 1 (it has 0); choose --devices" in error("address_0=192.168.1.1\n")
    assert "my.conf has no address_N of device 0, 1 (it has none)" in error("netmask_0=255.255.255.0\n")
    assert "my.conf, line 2: 192.168.1 is no IP address" in error("\naddress_0=192.168.1\n")
    assert "line 2: device 0 has another address in line 1; leave" in error(
        "address_0=192.168.1.1\naddress_0=192.168.1.2\n"
    )
    assert "device[1].device_ip: 192.168.1.1 is also that of" in error("address_0=192.168.1.1\naddress_1=192.168.1.1\n")


def test_the_address_of_the_server_is_that_of_its_name_or_its_route_or_asked_for(folder, run, monkeypatch):
    def route(address):
        class Socket(socket.socket):
            def connect(self, _):
                if address is None:
                    raise OSError("Network is unreachable")

            def getsockname(self):
                return (address, 40000)

        monkeypatch.setattr(socket, "socket", Socket)

    words = ("generate", "--devices", "0")
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: {"node7": "10.0.0.7"}[name])
    assert "server_id 10.0.0.7 is the address of this host's name, node7; --server_ip" in run(*words)[2]
    assert Path("hccl_1p_0_10.0.0.7.json").exists()
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    route("10.0.0.8")
    assert "server_id 10.0.0.8 is the address of the default route" in run(*words)[2]
    assert Path("hccl_1p_0_10.0.0.8.json").exists()
    route(None)
    code, _, err = run(*words)
    assert code == 2 and "give the server's address with --server_ip" in err


def test_generate_in_a_super_pod_asks_npu_smi(folder, run, monkeypatch):
    words = ("generate", "--server_ip", "10.0.0.1", "--devices", "0-3", "--output", "t.json", "--overwrite")
    assert run(*words, "--version", "1.2")[1] == "saved t.json: 4 devices on 1 server in 1 super pod\n"
    table = json.loads(Path("t.json").read_text())
    assert table["version"] == "1.2" and table["server_list"][0]["host_ip"] == "10.0.0.1"
    assert table["super_pod_list"] == [{"super_pod_id": "0", "server_list": [{"server_id": "10.0.0.1"}]}]
    numbers = [int(d["super_device_id"]) for d in table["server_list"][0]["device"]]
    assert [(n >> 22, n >> 18 & 15, n >> 16 & 3, n & 0xFFFF) for n in numbers] == [
        (27, 0, 0, 0),  # server, card, die, device
        (27, 0, 1, 1),
        (27, 1, 0, 2),
        (27, 1, 1, 3),
    ]
    assert run(*words, "--super_pod_id", "7")[0] == 0  # a logical super pod; version 1.2 follows
    assert json.loads(Path("t.json").read_text())["super_pod_list"][0]["super_pod_id"] == "7"
    monkeypatch.setenv("POD", "1")
    assert "npu-smi names the super pods 0, 1 for one server; give --super_pod_id" in run(*words, "--version", "1.2")[2]
    words = ("generate", "--server_ip", "10.0.0.1", "--devices", "4")
    err = run(*words, "--version", "1.2")[2]
    assert "printed no SDID and Super Pod ID but 'This device does not support querying spod-info.'; name" in err
    assert "cannot run elsewhere" in run(*words, "--version", "1.2", "--npu_smi", "elsewhere")[2]
    assert "are of version 1.2; leave them out" in run(*words, "--version", "1.0", "--super_pod_id", "0")[2]


def test_faults_of_a_host_list_are_named_with_their_line(folder, run):
    def error(text: str, *words) -> str:
        Path("hosts").write_text(text)
        code, _, err = run("generate", "--hosts", "hosts", *words)
        assert code == 2
        return err

    good = "10.0.0.1 device_ip=192.168.0.1\n"
    assert "hosts names no server; write a line a server" in error("# nothing\n\n")
    assert "hosts, line 2: says nothing of the cards of 10.0.0.2" in error(f"{good}10.0.0.2\n")
    assert "line 1: begins with 'device_ip=1.1.1.1', expected the server's name" in error("device_ip=1.1.1.1\n")
    assert "unknown key 'device_ips' (did you mean 'device_ip'?)" in error("a device_ips=1.1.1.1\n")
    assert "line 1: '1.1.1.2' is no key=value; write lists with commas" in error("a device_ip=1.1.1.1, 1.1.1.2\n")
    assert "line 1: 'device_ip' is no key=value" in error("a device_ip=\n")
    assert "line 1: device_ip stands twice" in error("a device_ip=1.1.1.1 device_ip=1.1.1.2\n")
    assert "device_ip has 2 values for 3 devices" in error("a devices=0-2 device_ip=1.1.1.1,1.1.1.2\n")
    assert "line 1: devices are '0-99', expected numbers" in error("a devices=0-99\n")
    assert "line 1: No closing quotation; mend the quotes" in error("a device_ip='1.1.1.1\n")
    assert "line 2: super_pod_id must stand on every line or on none" in error(f"{good}b devices=0 super_pod_id=0\n")
    assert "hosts: $.server_list[1].server_id: 10.0.0.1 is also that of" in error(good + good.replace("168", "169"))
    assert "--devices, --server_ip with --hosts" in error(good, "--devices", "0", "--server_ip", "10.0.0.1")
    assert "version 1.2, but hosts names no super pod; leave --version out" in error(good, "--version", "1.2")
    assert "super_device_id: is missing" in error("a devices=0 super_pod_id=0\n")
    assert not list(Path().glob("*.json"))


def test_a_host_list_chooses_devices_and_comments_end_lines(folder, run):
    Path("hosts").write_text("a device_ip=192.168.0.1,192.168.0.2 devices=4,6 # two\n\nb device_ip=192.168.0.3\n")
    assert run("generate", "--hosts", "hosts")[1] == "saved hccl_2s_3p.json: 3 cards on 2 servers\n"
    servers = json.loads(Path("hccl_2s_3p.json").read_text())["server_list"]
    assert [(s["server_id"], d["device_id"], d["rank_id"]) for s in servers for d in s["device"]] == [
        ("a", "4", "0"),
        ("a", "6", "1"),
        ("b", "0", "2"),
    ]


def test_merge_check_and_show_on_the_command_line(folder, run):
    for i in (1, 2):
        Path("hosts").write_text(f"10.0.0.{i} device_ip=192.168.0.{i},192.168.1.{i}\n")
        run("generate", "--hosts", "hosts", "--output", f"{i}.json")
    assert run("merge", "2.json", "1.json")[1] == "saved hccl_2s_4p.json: 4 cards on 2 servers\n"
    code, out, _ = run("show", "hccl_2s_4p.json")
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert code == 0 and rows == [
        ["0", "10.0.0.2", "0", "192.168.0.2"],
        ["1", "10.0.0.2", "1", "192.168.1.2"],
        ["2", "10.0.0.1", "0", "192.168.0.1"],
        ["3", "10.0.0.1", "1", "192.168.1.1"],
    ]
    assert run("check", "hccl_2s_4p.json") == (0, "ok: 4 cards on 2 servers\n", "")
    assert "hccl_2s_4p.json exists" in run("merge", "1.json", "2.json")[2]
    table = json.loads(Path("hccl_2s_4p.json").read_text())
    for rank, device in enumerate(d for server in table["server_list"] for d in server["device"]):
        device["rank_id"] = rank  # as merge_hccl.py, the tool that users had, writes them
    Path("old.json").write_text(json.dumps(table))
    code, out, err = run("check", "old.json")
    assert code == 2 and err == "4 faults in old.json\n" and len(out.splitlines()) == 4
    assert out.startswith(
        '$.server_list[0].device[0].rank_id: is the number 0, expected a string; put it in quotes: "0"\n'
    )
    assert "(and 3 more); msllm ranktable check old.json names all" in run("merge", "old.json", "1.json")[2]
    assert "(and 3 more)" in run("show", "old.json")[2]
    assert "old.txt: No such file" in run("check", "old.txt")[2]
    table["server_list"][0]["device"].pop()
    for rank, device in enumerate(d for server in table["server_list"] for d in server["device"]):
        device["rank_id"] = str(rank)
    Path("uneven.json").write_text(json.dumps(table))
    code, out, _ = run("check", "uneven.json")
    assert code == 0 and out.startswith("warning: $.server_list: servers have 1, 2 devices")
    assert out.endswith("ok: 3 cards on 2 servers\n")


@pytest.mark.parametrize("action", ["merge", "check", "show"])
def test_an_action_without_a_table_says_what_to_name(folder, run, action):
    code, _, err = run(action)
    assert code == 2 and "error: " in err and "name" in err


SERVER = ("--server_ip", "10.0.0.1", "--hccn_conf", SAMPLES / "hccn.conf")


@pytest.mark.parametrize(
    ("name", "words", "summary"),
    [
        ("hccl_1s_1p.json", (*SERVER, "--devices", "0"), "1 card on 1 server"),
        ("hccl_1s_8p.json", SERVER, "8 cards on 1 server"),
        ("hccl_2s_16p.json", ("--hosts", SAMPLES / "hosts_2s_16p.txt"), "16 cards on 2 servers"),
        ("hccl_8s_64p.json", ("--hosts", SAMPLES / "hosts_8s_64p.txt"), "64 cards on 8 servers"),
        (
            "hccl_4s_16p_superpod.json",
            ("--hosts", SAMPLES / "hosts_4s_16p_superpod.txt"),
            "16 devices on 4 servers in 2 super pods",
        ),
    ],
)
def test_each_sample_is_right_and_what_the_command_writes(folder, run, name, words, summary):
    assert run("check", SAMPLES / name) == (0, f"ok: {summary}\n", "")
    assert run("generate", *words, "--output", name)[0] == 0
    assert Path(name).read_text() == (SAMPLES / name).read_text()


def test_no_sample_is_left_out():
    assert len(list(SAMPLES.glob("*.json"))) == 5
