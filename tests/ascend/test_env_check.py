"""env_check on made-up nodes: one where all is well, and one for each fault."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ascend" / "env_check.py"
spec = importlib.util.spec_from_file_location("env_check", SCRIPT)
env_check = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = env_check  # dataclasses look there
spec.loader.exec_module(env_check)

# The form of npu-smi's table is that of the maker's pages on npu-smi info; the numbers are made up.
NPU_SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 26.0.rc1                 Version: 26.0.rc1                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.4        41                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3392 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 91.0        40                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          3391 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
+===========================+===============+====================================================+
"""
HCCN_TOOL = """\
case "$3 $2" in
  "-ip 0") echo "ipaddr:192.0.2.10"; echo "netmask:255.255.255.0" ;;
  "-ip 1") echo "ipaddr:192.0.2.11"; echo "netmask:255.255.255.0" ;;
  "-link "?) echo "link status: UP" ;;
esac
"""
CANN = "/usr/local/Ascend/cann"
DRIVER = "/usr/local/Ascend/driver"


class Node(env_check.Node):
    """A node whose files and programs are made up, and what Python and the kernel would say too."""

    def __init__(self, folder, nodes=2):
        bin = folder / "bin"
        env = {"PATH": str(bin), "ASCEND_HOME_PATH": CANN, "ASCEND_OPP_PATH": f"{CANN}/opp"}
        super().__init__(nodes, folder, env, [str(folder / "site")])
        self.kernel = ("Linux", platform.machine())
        self.version, self.total, self.free = (3, 11), 16 * 2**30, 10**12
        self.limits = {"nofile": 1048576, "nproc": None, "memlock": None, "stack": 8 * 2**20}
        self.asked: list[str] = []
        for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
            self.write(f"/dev/{name}", "")
        self.write("/proc/meminfo", "MemTotal: 1584000000 kB\nMemFree: 1 kB\nMemAvailable: 1500000000 kB\n")
        self.write("/etc/hccn.conf", "address_0=192.0.2.10\naddress_1=192.0.2.11\n")
        self.write(f"{DRIVER}/version.info", "Version=26.0.rc1\nascendhal_version=7.35.23\n")
        self.write(f"{CANN}/compiler/version.info", "Version=9.0.0\nrequired_driver=1.0\n")
        self.write(f"{CANN}/lib64/libhccl.so", "")
        self.write("/site/mindspore-2.9.0.dist-info/METADATA", "Name: mindspore\nVersion: 2.9.0\n")
        self.write("/site/mindspore/lib/plugin/libmindspore_ascend.so.2", "")
        self.write("/site/hccl/__init__.py", "raise SystemExit('not to be imported')")
        self.write("/site/te.py", "raise SystemExit('not to be imported')")
        self.program("npu-smi", f"cat <<'END'\n{NPU_SMI}END\n")
        self.program("hccn_tool", HCCN_TOOL)
        self.program("timedatectl", "echo yes")

    def write(self, place, text):
        path = self.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, name, body):
        self.write(f"/bin/{name}", f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
        self.path(f"/bin/{name}").chmod(0o755)

    def remove(self, *places):
        for place in places:
            self.path(place).unlink()

    def system(self):
        return self.kernel

    def python(self):
        return self.version

    def disk(self, folder):
        return self.total, self.free

    def limit(self, name):
        return self.limits[name]

    def path(self, place):
        if hasattr(self, "asked"):
            self.asked.append(place)
        return super().path(place)

    def run(self, *command, beside=""):
        self.asked.append(f"$ {' '.join(command)}")
        return super().run(*command, beside=beside)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def lines_of(node, capsys):
    failures = env_check.report(node)
    return failures, capsys.readouterr().out.splitlines()


def test_a_node_where_all_is_well(node, capsys):
    failures, lines = lines_of(node, capsys)
    assert failures == 0
    assert lines == [
        f"ok    system     Linux {platform.machine()}",
        "ok    system     Python 3.11",
        "ok    devices    2 cards: /dev/davinci0, 1",
        "ok    health     card 0: 910B3, health OK",
        "ok    health     card 1: 910B3, health OK",
        "ok    driver     driver 26.0.rc1",
        f"ok    cann       CANN 9.0.0 in {CANN}",
        "ok    mindspore  MindSpore 2.9.0",
        "ok    mindspore  MindSpore's plugin for Ascend",
        "ok    hccl       Python finds hccl and te",
        "ok    hccl       libhccl.so",
        "ok    network    card 0: 192.0.2.10, link UP",
        "ok    network    card 1: 192.0.2.11, link UP",
        "ok    memory     1431 GiB of host memory available for 2 cards",
        "ok    memory     /dev/shm of 16.00 GiB",
        "ok    disk       931 GiB free in the working folder",
        "ok    limits     nofile 1048576",
        "ok    limits     nproc unlimited",
        "ok    limits     memlock unlimited",
        "ok    limits     stack 8388608",
        "ok    clock      synchronised",
        "21 ok, 0 to look at, 0 to mend",
    ]


INSTALL_INFO = f"{CANN}/{platform.machine()}-linux/ascend_toolkit_install.info"
META = "/site/mindspore-2.9.0.dist-info/METADATA"
# fault -> (what is done to the node, the line's status and check, words in it and in its mending)
FAULTS = {
    "another system": (
        lambda n: setattr(n, "kernel", ("Darwin", "arm64")),
        "fail",
        "system",
        "Darwin arm64",
        "Linux on",
    ),
    "another Python": (lambda n: setattr(n, "version", (3, 9)), "fail", "system", "Python 3.9", "Python 3.10 to 3.12"),
    "no card": (lambda n: n.remove("/dev/davinci0", "/dev/davinci1"), "fail", "devices", "no card", "driver"),
    "no manager": (lambda n: n.remove("/dev/hisi_hdc"), "fail", "devices", "/dev/hisi_hdc missing", "reload"),
    "no npu-smi": (lambda n: n.remove("/bin/npu-smi"), "fail", "health", "npu-smi is missing", "/usr/local/sbin"),
    "npu-smi fails": (
        lambda n: n.program("npu-smi", "exit 1"),
        "fail",
        "health",
        "npu-smi is missing or failed",
        "PATH",
    ),
    "no rows": (lambda n: n.program("npu-smi", "echo none"), "fail", "health", "npu-smi lists no card", "dmesg"),
    "alarm": (
        lambda n: n.program(
            "npu-smi", f"cat <<'END'\n{NPU_SMI.replace('| OK            | 91', '| Alarm         | 91')}END\n"
        ),
        *("fail", "health", "card 1: 910B3, health Alarm", "npu-smi info -t health -i 1"),
    ),
    "warning": (
        lambda n: n.program(
            "npu-smi", f"cat <<'END'\n{NPU_SMI.replace('| OK            | 93', '| Warning       | 93')}END\n"
        ),
        *("warn", "health", "card 0: 910B3, health Warning", "npu-smi info -t health -i 0"),
    ),
    "no driver": (lambda n: n.remove(f"{DRIVER}/version.info"), "fail", "driver", "no version in", "26.0.RC1"),
    "another driver": (
        lambda n: n.write(f"{DRIVER}/version.info", "Version=25.5.0\n"),
        *("warn", "driver", "driver 25.5.0; whether it fits is not known", "26.0.RC1"),
    ),
    "no CANN": (
        lambda n: (n.path(CANN).rename(n.path("/elsewhere")), n.env.pop("ASCEND_HOME_PATH")),
        *("fail", "cann", "no CANN in /usr/local/Ascend/cann or", "install CANN 9.0.0"),
    ),
    "older CANN": (
        lambda n: n.write(f"{CANN}/compiler/version.info", "Version=8.5.0\n"),
        *("warn", "cann", "CANN 8.5.0: MindSpore's fused operators were compiled for 9.0", "install CANN 9.0.0"),
    ),
    "CANN too old": (
        lambda n: n.write(f"{CANN}/compiler/version.info", "Version=8.1.RC1\n"),
        *("fail", "cann", "CANN 8.1.RC1; MindSpore 2.9.0 accepts 8.2, 8.3, 8.5, 9.0", "install CANN 9.0.0"),
    ),
    "CANN unknown": (
        lambda n: n.remove(f"{CANN}/compiler/version.info"),
        *("warn", "cann", f"version of CANN in {CANN} unknown", "install CANN 9.0.0"),
    ),
    "CANN's other file": (
        lambda n: (n.remove(f"{CANN}/compiler/version.info"), n.write(INSTALL_INFO, "package_name=t\nversion=8.0.0\n")),
        *("fail", "cann", "CANN 8.0.0; MindSpore 2.9.0 accepts", "install CANN 9.0.0"),
    ),
    "not sourced": (
        lambda n: n.env.pop("ASCEND_HOME_PATH"),
        *("warn", "cann", "ASCEND_HOME_PATH is not set", f"source {CANN}/set_env.sh"),
    ),
    "half sourced": (
        lambda n: n.env.pop("ASCEND_OPP_PATH"),
        *("fail", "cann", "ASCEND_OPP_PATH is not set", f"source {CANN}/set_env.sh"),
    ),
    "no MindSpore": (lambda n: n.remove(META), "fail", "mindspore", "is not installed", "pip install mindspore==2.9.0"),
    "another MindSpore": (
        lambda n: n.write(META, "Name: mindspore\nVersion: 2.7.1\n"),
        *("fail", "mindspore", "MindSpore 2.7.1", "pip install mindspore==2.9.0"),
    ),
    "no plugin": (
        lambda n: n.remove("/site/mindspore/lib/plugin/libmindspore_ascend.so.2"),
        *("fail", "mindspore", "no libmindspore_ascend.so", "--force-reinstall"),
    ),
    "no te": (lambda n: n.remove("/site/te.py"), "fail", "hccl", "Python does not find te", "set_env.sh"),
    "no libhccl": (lambda n: n.remove(f"{CANN}/lib64/libhccl.so"), "fail", "hccl", "no libhccl.so", "whole toolkit"),
    "no hccn.conf": (lambda n: n.remove("/etc/hccn.conf"), "fail", "network", "/etc/hccn.conf is missing", "root"),
    "no hccn_tool": (lambda n: n.remove("/bin/hccn_tool"), "fail", "network", "hccn_tool is missing", "run as root"),
    "no address": (
        lambda n: n.program("hccn_tool", HCCN_TOOL.replace('"-ip 1"', "x")),
        *("fail", "network", "card 1: no address", "hccn_tool -i 1 -ip -s address"),
    ),
    "link down": (
        lambda n: n.program("hccn_tool", HCCN_TOOL.replace("UP", "DOWN")),
        *("fail", "network", "card 0: 192.0.2.10, link DOWN", "cable"),
    ),
    "little memory": (
        lambda n: n.write("/proc/meminfo", "MemAvailable: 20971520 kB\n"),
        *("warn", "memory", "20 GiB of host memory available for 2 cards", "have 32 GiB"),
    ),
    "memory unknown": (lambda n: n.remove("/proc/meminfo"), "warn", "memory", "host memory unknown", "free -g"),
    "little shm": (lambda n: setattr(n, "total", 2**26), "warn", "memory", "/dev/shm of 0.06 GiB", "--shm-size"),
    "little disk": (lambda n: setattr(n, "free", 2**30), "warn", "disk", "1 GiB free", "larger disk"),
    "few files": (lambda n: n.limits.update(nofile=1024), "warn", "limits", "nofile 1024", "ulimit -n 65535"),
    "few processes": (lambda n: n.limits.update(nproc=4096), "warn", "limits", "nproc 4096", "ulimit -u 65535"),
    "little memlock": (
        lambda n: n.limits.update(memlock=65536),
        "warn",
        "limits",
        "memlock 65536",
        "ulimit -l unlimited",
    ),
    "little stack": (lambda n: n.limits.update(stack=65536), "warn", "limits", "stack 65536", "ulimit -s unlimited"),
    "clock": (lambda n: n.program("timedatectl", "echo no"), "warn", "clock", "not synchronised", "chronyd"),
    "no clock": (lambda n: n.remove("/bin/timedatectl"), "warn", "clock", "timedatectl does not answer", "date +%s"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_a_line_that_says_how_to_mend_it(node, capsys, fault):
    breaks, status, name, words, mend = FAULTS[fault]
    breaks(node)
    check = next(function for check, function, _ in env_check.CHECKS if check == name)
    found = [finding for finding in check(node) if finding.status != "ok"]
    assert found[0].status == status
    assert words in found[0].text and mend in found[0].mend
    if status == "fail" and fault in ("no card", "no te"):  # and the report counts it
        failures, lines = lines_of(node, capsys)
        assert failures == sum(line.startswith("fail ") for line in lines) >= 1
        assert lines[-1].endswith(f"{failures} to mend")


def test_one_node_can_do_without_its_network_and_clock(tmp_path, capsys):
    node = Node(tmp_path, nodes=1)
    node.remove("/etc/hccn.conf", "/bin/hccn_tool", "/bin/timedatectl")
    failures, lines = lines_of(node, capsys)
    assert failures == 0
    assert [line.split()[1] for line in lines if line.startswith("warn")] == ["network", "network"]


def test_the_dry_run_names_all_that_is_looked_at(node, capsys):
    node.env.pop("ASCEND_HOME_PATH")
    node.path(CANN).rename(node.path("/usr/local/Ascend/before"))
    (node.path("/usr/local/Ascend/ascend-toolkit")).mkdir()
    node.path("/usr/local/Ascend/before").rename(node.path("/usr/local/Ascend/ascend-toolkit/latest"))
    node.asked.clear()
    env_check.report(node)
    capsys.readouterr()
    assert env_check.main(["--dry-run"]) == 0
    shown = capsys.readouterr().out
    known = {re.sub(r"-i \d+", "-i CARD", place) for place in node.asked}
    places = {place for place in known if place not in ("/dev", *env_check.CANN_HOMES) and not place.endswith("/tools")}
    places -= {"/usr/local/sbin"}  # where npu-smi is looked for
    assert len(places) > 8 and not [place for place in places if place not in shown]


def test_the_table_of_versions_is_that_of_the_wheel():
    """MindSpore's own list of CANN versions, and what its operators were compiled for; MindSpore is not imported."""
    folder = Path(importlib.util.find_spec("mindspore").submodule_search_locations[0])
    source = (folder / "run_check" / "_check_version.py").read_text()
    ascend = source[source.index("class AscendEnvChecker") :]
    accepted = re.search(r"self\.version = \[(.*?)\]", ascend)[1]
    assert tuple(re.findall(r'"([\d.]+)"', accepted)) == env_check.CANN_ACCEPTED
    compiled = (folder / "lib/plugin/ascend/custom_ascendc_910b/version.info").read_text()
    assert f"={env_check.CANN_COMPILED_FOR}." in compiled
    assert f"'{env_check.MINDSPORE}'" in (folder / "version.py").read_text()


def test_the_command_line(node):
    """With the real system below: its exit code counts failures, and MindSpore and CANN's modules are not imported."""
    env = {**node.env, "PYTHONPATH": str(node.path("/site"))}
    command = [sys.executable, "-S", str(SCRIPT), "--nodes", "2", "--root", str(node.root)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=node.root)
    assert done.stderr == "" and "ok    network    card 1: 192.0.2.11, link UP" in done.stdout
    assert "ok    mindspore  MindSpore 2.9.0" in done.stdout and "ok    hccl       libhccl.so" in done.stdout
    assert "warn  memory     /dev/shm of 0.00 GiB" in done.stdout  # the made-up root has none
    assert done.returncode == 0
    node.remove(META)
    assert subprocess.run(command, env=env, capture_output=True, cwd=os.getcwd()).returncode == 1
