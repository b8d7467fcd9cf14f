#!/usr/bin/env python
"""Checks whether a node can train: system, cards, driver, CANN, MindSpore, HCCL, memory, limits.

    python ascend/env_check.py [--nodes N] [--dry-run]

Run it with the Python that has MindSpore, on every node. Each line is "ok", "warn" or "fail", and says how to mend.
The exit code is 1 where a line says fail, else 0. Only the standard library is used, and MindSpore is looked at but not
imported: it may be what is broken.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

# Which CANN MindSpore 2.9.0 accepts at start-up: mindspore/run_check/_check_version.py, AscendEnvChecker, in its wheel.
# What its fused operators were compiled for: lib/plugin/ascend/custom_ascendc_910b/version.info in the wheel; with
# another CANN MindSpore warns. The driver beside it: MindSpore Transformers 1.9.0, Installation Guidelines, version
# table (mindspore.cn/mindformers/docs/en/r1.9.0/installation.html). Other pairs of CANN and driver are not known here.
MINDSPORE = "2.9.0"
CANN_ACCEPTED = ("8.2", "8.3", "8.5", "9.0")
CANN_COMPILED_FOR = "9.0"
DRIVER_TESTED = "26.0.RC1"
PYTHONS = ((3, 10), (3, 11), (3, 12))  # for which MindSpore 2.9.0 has wheels

ASCEND = "/usr/local/Ascend"
CANN_HOMES = (f"{ASCEND}/cann", f"{ASCEND}/ascend-toolkit/latest")  # from 8.5 on, and before
# Below the folder of CANN: the file that MindSpore reads, and the one that the installer writes.
CANN_VERSIONS = ("compiler/version.info", f"{platform.machine()}-linux/ascend_toolkit_install.info")
DRIVER_INFO = f"{ASCEND}/driver/version.info"
MANAGERS = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
HCCN_CONF = "/etc/hccn.conf"
GIB = 2**30
# Rules of thumb, not the maker's figures.
HOST_MEMORY_PER_CARD = 16 * GIB  # the runtime of a process, its part of a checkpoint, and batches
SHARED_MEMORY = GIB  # Docker gives 64 MiB, and HCCL and loaders put their buffers there
DISK = 100 * GIB  # a checkpoint of LLaMA 7B with AdamW's states in float32 takes 12 bytes a parameter, 81 GB
LIMITS = {"nofile": (65535, "-n"), "nproc": (65535, "-u"), "memlock": (None, "-l"), "stack": (8 * 2**20, "-s")}
CONTAINER = "in a container start it with devices and driver, see ascend/README.md"


@dataclasses.dataclass
class Finding:
    """A line of the report: ok, warn where it may work, fail where it will not; with how to mend it."""

    status: str
    text: str
    mend: str = ""


ok = functools.partial(Finding, "ok")
warn = functools.partial(Finding, "warn")
fail = functools.partial(Finding, "fail")


class Node:
    """The machine, as far as the checks look at it.

    Args:
        nodes: how many of them will train together.
        root: folder in which its files are; another than / serves tests.
        env: environment variables.
        sites: folders of Python packages.
    """

    def __init__(
        self,
        nodes: int = 1,
        root: str | Path = "/",
        env: Mapping[str, str] = os.environ,
        sites: Sequence[str] = sys.path,
    ):
        self.nodes, self.root, self.env, self.sites = nodes, Path(root), env, list(sites)

    def path(self, place: str) -> Path:
        """Returns where a file of the node is."""
        return self.root / place.lstrip("/")

    def read(self, place: str) -> str | None:
        """Returns a file's text; None where it is missing or may not be read."""
        try:
            return self.path(place).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def run(self, *command: str, beside: str = "") -> str | None:
        """Returns what a program prints, or None where it is missing or fails; ``beside`` is searched after PATH."""
        folders = [self.env.get("PATH", ""), *([str(self.path(beside))] if beside else [])]
        program = shutil.which(command[0], path=os.pathsep.join(folders))
        if program is None:
            return None
        try:
            done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def cards(self) -> list[int]:
        """Returns the numbers of the card devices."""
        found = (re.fullmatch(r"davinci(\d+)", path.name) for path in self.path("/dev").glob("davinci*"))
        return sorted(int(match[1]) for match in found if match)

    def cann(self) -> str | None:
        """Returns the folder of CANN, the one in use first."""
        homes = [home for home in (self.env.get("ASCEND_HOME_PATH"), *CANN_HOMES) if home]
        return next((home for home in homes if self.path(home).is_dir()), None)

    def package(self, name: str) -> tuple[str, Path] | None:
        """Returns version and folder of an installed Python package, which is not imported."""
        for found in importlib.metadata.distributions(name=name, path=self.sites):
            if found.version:  # what a broken installation leaves has none
                return found.version, Path(found.locate_file(name))
        return None

    def has_module(self, name: str) -> bool:
        """Whether a Python module can be found; it is not imported."""
        return PathFinder.find_spec(name, self.sites) is not None

    def system(self) -> tuple[str, str]:
        """Returns operating system and architecture."""
        return platform.system(), platform.machine()

    def python(self) -> tuple[int, int]:
        """Returns the version of Python."""
        return sys.version_info[:2]

    def disk(self, folder: Path) -> tuple[int, int]:
        """Returns the bytes of the file system that a folder is on, and those that are free; 0 where there is none."""
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            return 0, 0
        return usage.total, usage.free

    def limit(self, name: str) -> int | None:
        """Returns a soft limit (ulimit); None is no limit."""
        import resource

        value = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[0]
        return None if value == resource.RLIM_INFINITY else value


CHECKS: list[tuple[str, Callable[[Node], Iterator[Finding]], tuple[str, ...]]] = []


def check(*looks_at: str):
    """Registers a check under its function's name; ``looks_at`` is what --dry-run shows: files, and "$ commands"."""

    def register(function):
        CHECKS.append((function.__name__, function, looks_at))
        return function

    return register


@check("uname", "python --version")
def system(node: Node) -> Iterator[Finding]:
    """Linux, an architecture and a Python that MindSpore has wheels for."""
    name, machine = node.system()
    if name == "Linux" and machine in ("aarch64", "x86_64"):
        yield ok(f"{name} {machine}")
    else:
        yield fail(f"{name} {machine}", "use Linux on aarch64 or x86_64; MindSpore for Ascend runs nowhere else")
    version = ".".join(map(str, node.python()))
    if node.python() in PYTHONS:
        yield ok(f"Python {version}")
    else:
        yield fail(f"Python {version}", f"make an environment of Python 3.10 to 3.12, as MindSpore {MINDSPORE} needs")


@check("/dev/davinci*", *MANAGERS)
def devices(node: Node) -> Iterator[Finding]:
    """The driver's devices."""
    cards = node.cards()
    if not cards:
        yield fail("no card: /dev/davinci0 and so on are missing", f"install the driver; {CONTAINER}")
    else:
        yield ok(f"{_cards(len(cards))}: /dev/davinci{', '.join(map(str, cards))}")
    if cards and (lacking := [place for place in MANAGERS if not node.path(place).exists()]):
        yield fail(f"{', '.join(lacking)} missing", f"reload the driver or reboot; {CONTAINER}")


@check("$ npu-smi info")
def health(node: Node) -> Iterator[Finding]:
    """What the driver says of each card."""
    text = node.run("npu-smi", "info", beside="/usr/local/sbin")
    if text is None:
        yield fail("npu-smi is missing or failed", f"install the driver and add /usr/local/sbin to PATH; {CONTAINER}")
        return
    rows = re.findall(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*(OK|Warning|Alarm|Critical|UNKNOWN)\s*\|", text, re.MULTILINE)
    if not rows:
        yield fail("npu-smi lists no card", "see dmesg; reload the driver or reboot")
    for card, name, state in rows:
        if state == "OK":
            yield ok(f"card {card}: {name}, health OK")
        else:
            status = warn if state == "Warning" else fail
            yield status(
                f"card {card}: {name}, health {state}", f"ask npu-smi info -t health -i {card}; reset or replace"
            )


@check(DRIVER_INFO)
def driver(node: Node) -> Iterator[Finding]:
    """The driver's version beside CANN's."""
    version = _field(node.read(DRIVER_INFO), "Version")
    if version is None:
        yield fail(f"no version in {DRIVER_INFO}", f"install driver and firmware {DRIVER_TESTED}; {CONTAINER}")
    elif version.lower() == DRIVER_TESTED.lower():
        yield ok(f"driver {version}")
    else:
        yield warn(
            f"driver {version}; whether it fits is not known: MindSpore {MINDSPORE} is published with {DRIVER_TESTED}",
            f"install driver and firmware {DRIVER_TESTED}, or see the release notes of CANN",
        )


@check(*(f"{home}/{file}" for home in ("$ASCEND_HOME_PATH", *CANN_HOMES) for file in CANN_VERSIONS))
def cann(node: Node) -> Iterator[Finding]:
    """CANN's version, and whether its environment is set."""
    home = node.cann()
    if home is None:
        yield fail(f"no CANN in {' or '.join(CANN_HOMES)}", f"install CANN {CANN_COMPILED_FOR}.0: toolkit and kernels")
        return
    texts = (node.read(f"{home}/{file}") for file in CANN_VERSIONS)
    version = next((version for text in texts if (version := _field(text, "Version"))), None)
    numbers = ".".join((version or "").split(".")[:2])
    advice = f"install CANN {CANN_COMPILED_FOR}.0"
    if version is None:
        yield warn(f"version of CANN in {home} unknown: no {' or '.join(CANN_VERSIONS)}", advice)
    elif numbers == CANN_COMPILED_FOR:
        yield ok(f"CANN {version} in {home}")
    elif numbers in CANN_ACCEPTED:
        yield warn(f"CANN {version}: MindSpore's fused operators were compiled for {CANN_COMPILED_FOR}", advice)
    else:
        yield fail(f"CANN {version}; MindSpore {MINDSPORE} accepts {', '.join(CANN_ACCEPTED)}", advice)
    if not node.env.get("ASCEND_HOME_PATH"):
        script = f"{home.removesuffix('/latest')}/set_env.sh"
        yield warn("ASCEND_HOME_PATH is not set", f"source {script} (the launch scripts do)")
    elif "ASCEND_OPP_PATH" not in node.env:
        yield fail("ASCEND_OPP_PATH is not set", f"source {home.removesuffix('/latest')}/set_env.sh")


@check("metadata of Python's packages", "mindspore/lib/plugin/libmindspore_ascend.so*")
def mindspore(node: Node) -> Iterator[Finding]:
    """MindSpore's version, and whether this wheel knows Ascend."""
    found = node.package("mindspore")
    if found is None:
        yield fail(f"MindSpore is not installed for {sys.executable}", f"pip install mindspore=={MINDSPORE}")
        return
    version, folder = found
    if version == MINDSPORE:
        yield ok(f"MindSpore {version}")
    else:
        yield fail(f"MindSpore {version}; msllm is written for {MINDSPORE}", f"pip install mindspore=={MINDSPORE}")
    if any((folder / "lib" / "plugin").glob("libmindspore_ascend.so*")):
        yield ok("MindSpore's plugin for Ascend")
    else:
        yield fail(
            f"no libmindspore_ascend.so in {folder / 'lib/plugin'}: this wheel is for CPU",
            f"pip install --force-reinstall mindspore=={MINDSPORE} from a Linux wheel",
        )


@check("Python's modules hccl and te", "$ASCEND_HOME_PATH/lib64/libhccl.so")
def hccl(node: Node) -> Iterator[Finding]:
    """The library of collectives, and the Python packages of CANN that MindSpore imports."""
    home = node.cann()
    if lacking := [name for name in ("hccl", "te") if not node.has_module(name)]:
        yield fail(
            f"Python does not find {' and '.join(lacking)}, which MindSpore imports",
            f"source set_env.sh of CANN, or pip install {home or '$ASCEND_HOME_PATH'}/lib64/{{te,hccl}}-*.whl",
        )
    else:
        yield ok("Python finds hccl and te")
    if home and any(node.path(home).glob("**/lib64/libhccl.so")):
        yield ok("libhccl.so")
    else:
        yield fail("no libhccl.so in CANN", f"install the whole toolkit of CANN {CANN_COMPILED_FOR}.0")


@check(HCCN_CONF, "$ hccn_tool -i CARD -ip -g", "$ hccn_tool -i CARD -link -g")
def network(node: Node) -> Iterator[Finding]:
    """The cards' own network ports, through which nodes talk; one node can do without."""
    status = fail if node.nodes > 1 else warn
    why = "" if node.nodes > 1 else " (several nodes need it)"
    if node.read(HCCN_CONF) is None:
        yield status(f"{HCCN_CONF} is missing or not readable{why}", "set the cards' addresses with hccn_tool; be root")
    for card in node.cards():
        ask = ("hccn_tool", "-i", str(card))
        address = node.run(*ask, "-ip", "-g", beside=f"{ASCEND}/driver/tools")
        link = node.run(*ask, "-link", "-g", beside=f"{ASCEND}/driver/tools")
        if address is None and link is None:
            yield status(f"hccn_tool is missing or failed{why}", f"run as root; it lies in {ASCEND}/driver/tools")
            return
        number = re.search(r"ipaddr:\s*([0-9a-fA-F.:]+)", address or "")
        state = re.search(r"link status:\s*(\w+)", link or "")
        if number is None:
            yield status(
                f"card {card}: no address{why}", f"hccn_tool -i {card} -ip -s address ADDRESS netmask MASK, then again"
            )
        elif state is None or state[1] != "UP":
            down = state[1] if state else "unknown"
            yield status(f"card {card}: {number[1]}, link {down}{why}", "see cable, optical module and switch port")
        else:
            yield ok(f"card {card}: {number[1]}, link UP")


@check("/proc/meminfo", "/dev/shm")
def memory(node: Node) -> Iterator[Finding]:
    """Host memory beside the cards, and shared memory."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB", node.read("/proc/meminfo") or "", re.MULTILINE)
    cards = len(node.cards())
    if match is None:
        yield warn("host memory unknown: no MemAvailable in /proc/meminfo", "see free -g")
    else:
        free, need = int(match[1]) * 1024, max(1, cards) * HOST_MEMORY_PER_CARD
        text = f"{free / GIB:.0f} GiB of host memory available" + (f" for {_cards(cards)}" if cards else "")
        yield ok(text) if free >= need else warn(text, f"have {need / GIB:.0f} GiB: end other jobs, or use fewer cards")
    shared, _ = node.disk(node.path("/dev/shm"))
    text = f"/dev/shm of {shared / GIB:.2f} GiB"
    yield ok(text) if shared >= SHARED_MEMORY else warn(text, "docker run --shm-size=16g, or mount it larger")


@check("the working folder")
def disk(node: Node) -> Iterator[Finding]:
    """Space for checkpoints."""
    _, free = node.disk(Path.cwd())
    text = f"{free / GIB:.0f} GiB free in the working folder"
    yield ok(text) if free >= DISK else warn(text, "write to a larger disk: LLaMA 7B's checkpoint takes 81 GB")


@check(*(f"ulimit {option}" for _, option in LIMITS.values()))
def limits(node: Node) -> Iterator[Finding]:
    """What a process may have."""
    for name, (need, option) in LIMITS.items():
        value = node.limit(name)
        text = f"{name} {'unlimited' if value is None else value}"
        if value is None or (need is not None and value >= need):
            yield ok(text)
        else:
            wanted = "unlimited" if name in ("memlock", "stack") else str(need)
            yield warn(text, f"ulimit {option} {wanted}; for good in /etc/security/limits.conf")


@check("$ timedatectl show --property=NTPSynchronized --value")
def clock(node: Node) -> Iterator[Finding]:
    """Nodes whose clocks differ write logs and checkpoints that cannot be put in order."""
    if node.nodes == 1:
        return
    answer = node.run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if answer is None:
        yield warn("timedatectl does not answer", "compare date +%s on all nodes")
    elif answer.strip() == "yes":
        yield ok("synchronised")
    else:
        yield warn("not synchronised", "start chronyd or systemd-timesyncd on all nodes")


def _cards(number: int) -> str:
    return f"{number} card" + "s" * (number != 1)


def _field(text: str | None, name: str) -> str | None:
    """Returns the value of a line NAME=VALUE."""
    match = re.search(rf"^{name}\s*=\s*(\S+)", text or "", re.MULTILINE | re.IGNORECASE)
    return match[1] if match else None


def report(node: Node) -> int:
    """Prints all findings; returns how many are failures."""
    count = {"ok": 0, "warn": 0, "fail": 0}
    for name, function, _ in CHECKS:
        for finding in function(node):
            count[finding.status] += 1
            print(f"{finding.status:5} {name:10} {finding.text}" + (f": {finding.mend}" if finding.mend else ""))
    print(f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} to mend")
    return count["fail"]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes will train together (default 1)")
    parser.add_argument("--root", default="/", help="look at the files of another system, mounted here")
    parser.add_argument("--dry-run", action="store_true", help="print what would be looked at and run, and do nothing")
    options = parser.parse_args(argv)
    if options.nodes < 1:
        parser.error(f"--nodes is {options.nodes}, expected 1 or more")
    if options.dry_run:
        for name, _, looks_at in CHECKS:
            print(f"{name:10} {'; '.join(looks_at)}")
        return 0
    return 1 if report(Node(options.nodes, options.root)) else 0


if __name__ == "__main__":
    sys.exit(main())
