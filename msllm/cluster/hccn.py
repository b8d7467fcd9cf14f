"""What a server says of its own cards: addresses from hccn_tool or hccn.conf, places in a super pod from npu-smi."""

import ipaddress
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence

from msllm.errors import UserError
from msllm.files import read_text

HCCN_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
HCCN_CONF = "/etc/hccn.conf"
TIME_LIMIT = 30  # seconds for one call of a tool; one that hangs (a card that has fallen off the bus) must not hang us


class ToolError(Exception):
    """A tool that could not be run, failed, or printed something else than expected."""


def device_addresses(
    devices: Sequence[int], hccn_tool: str | None = None, hccn_conf: str | None = None
) -> tuple[dict[int, str], str]:
    """Returns the address of each device's network port, and a line on where they came from.

    With neither path given, hccn_tool (on PATH, else where the driver puts it) is asked, and where there is none or it
    fails, /etc/hccn.conf is read. A path that is given is the only source. UserError where an address is missing.
    """
    if hccn_conf is not None:
        return _from_conf(devices, hccn_conf), f"device addresses from {hccn_conf}"
    tool = hccn_tool or shutil.which("hccn_tool") or HCCN_TOOL
    try:
        return {i: _from_tool(tool, i) for i in devices}, f"device addresses from {tool}"
    except ToolError as e:
        if hccn_tool is not None:
            raise UserError(f"{e}; name another --hccn_tool, or --hccn_conf") from None
        failure = str(e)
    try:
        return _from_conf(devices, HCCN_CONF), f"{failure}; device addresses from {HCCN_CONF}"
    except UserError as e:
        raise UserError(f"{failure}; and {e}, or use --hosts with a list of servers and addresses") from None


def _from_tool(tool: str, device: int) -> str:
    """Asks hccn_tool, which prints ipaddr:192.168.100.101 and netmask:255.255.255.0 in two lines."""
    arguments = ["-i", str(device), "-ip", "-g"]
    printed = _run([tool, *arguments])
    address = re.search(r"^\s*ipaddr\s*:\s*(\S+)", printed, re.MULTILINE)
    if address is None or not _is_address(address[1]):
        raise ToolError(f"{tool} {' '.join(arguments)} printed no address but {_first_line(printed)}")
    return address[1]


def _from_conf(devices: Sequence[int], path: str) -> dict[int, str]:
    """Reads address_N=... lines; those of other settings (netmask_N, gateway_N, ...) are left aside."""
    found: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        match = re.fullmatch(r"\s*address_(\d+)\s*=\s*(\S+)\s*", line)
        if match is None:
            continue
        device, address = int(match[1]), match[2]
        if not _is_address(address):
            raise UserError(f"{path}, line {number}: {address} is no IP address; correct it")
        if device in found and found[device][1] != address:
            raise UserError(
                f"{path}, line {number}: device {device} has another address in line {found[device][0]}; leave one out"
            )
        found[device] = (number, address)
    if missing := [str(i) for i in devices if i not in found]:
        had = ", ".join(map(str, sorted(found))) or "none"
        raise UserError(f"{path} has no address_N of device {', '.join(missing)} (it has {had}); choose --devices")
    return {i: found[i][1] for i in devices}


def super_pod_place(device: int, npu_smi: str = "npu-smi") -> tuple[str, str]:
    """Returns (super_device_id, super_pod_id) of a device of an Atlas A3 server, from npu-smi; UserError on failure.

    Device i is die i mod 2 of card i // 2.
    """
    arguments = ["info", "-t", "spod-info", "-i", str(device // 2), "-c", str(device % 2)]
    step = "name another --npu_smi, or use --hosts with super_device_id and super_pod_id"
    try:
        printed = _run([npu_smi, *arguments])
    except ToolError as e:
        raise UserError(f"{e}; {step}") from None
    fields = {
        key.strip(): value.strip(" |") for key, _, value in (line.partition(":") for line in printed.splitlines())
    }
    place = fields.get("SDID", ""), fields.get("Super Pod ID", "")
    if not all(value.isdigit() for value in place):
        raise UserError(
            f"{npu_smi} {' '.join(arguments)} printed no SDID and Super Pod ID but {_first_line(printed)}; {step}"
        )
    return place


def host_address() -> tuple[str, str]:
    """Returns an address of this server and a line on how it was found; UserError where there is none to be found.

    The address of the host's name is taken; where that is a loopback address, that of the default route.
    """
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "127.0.0.1"
    if not ipaddress.ip_address(address).is_loopback:
        return address, f"server_id {address} is the address of this host's name, {name}; --server_ip names another"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))  # an address for documentation: UDP picks a route and sends nothing
            address = route.getsockname()[0]
        except OSError:
            raise UserError(
                f"this host's name, {name}, has no address but loopback, and there is no default route; "
                "give the server's address with --server_ip"
            ) from None
    return address, f"server_id {address} is the address of the default route; --server_ip names another"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT)
    except OSError as e:
        raise ToolError(f"cannot run {command[0]}: {e.strerror}") from None
    except subprocess.TimeoutExpired:
        raise ToolError(f"{' '.join(command)} did not end within {TIME_LIMIT} s") from None
    if done.returncode != 0:
        said = _first_line(done.stderr or done.stdout)
        raise ToolError(f"{' '.join(command)} ended with code {done.returncode}: {said}")
    return done.stdout


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return repr(lines[0][:120]) if lines else "nothing"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
