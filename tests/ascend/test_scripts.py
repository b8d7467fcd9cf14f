"""The launch scripts: what --dry-run prints is what fake programs in their place receive; failures and signals."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ASCEND = REPOSITORY / "ascend"
SCRIPTS = sorted(ASCEND.rglob("*.sh"))
LAUNCHERS = [path for path in SCRIPTS if path.name.startswith("launch_")]

with socket.create_server(("127.0.0.1", 0)) as server:
    PORT = server.getsockname()[1]

# Each notes what it was given, in a file named by its second argument, then does what FAKE_... says.
NOTE = r"""#!/usr/bin/env bash
note() {
  { printf '%s\0' "$@"; } >"$NOTES/$1.args"
  env -0 >"$NOTES/$1.env"
}
"""
FAKES = {
    "msrun": 'note msrun "$@"\neval "${FAKE_MSRUN:-}"\n',
    "ssh": 'note ssh "$@"\neval "${FAKE_SSH:-}"\n',
    # The scripts' own Python runs; msllm does not.
    "python": f"""[[ $1 != *this_machine.py ]] || exec {sys.executable} -S "$@"
if [[ $* == *"ranktable check"* ]]; then
  note check "$@"
  [[ -z ${{FAKE_CHECK:-}} ]] || {{ echo "$FAKE_CHECK" >&2; exit 2; }}
  exit 0
fi
note "rank_$RANK_ID" "$@"
eval "${{FAKE_RANK:-}}"
""",
}
# As msrun does: workers in sessions of their own, and an end with an error once one of them has ended so.
WORKERS = """
for rank in 0 1; do
  setsid bash -c 'trap "touch saved_$0; exit 2" TERM; cd $NOTES; touch worker_$0; while :; do sleep 0.1; done' $rank &
done
wait -n; wait; exit 1
"""


class Cluster:
    """A folder to work in, with fake programs."""

    def __init__(self, folder):
        self.folder, self.bin, self.notes = folder, folder / "bin", folder / "notes"
        self.bin.mkdir()
        self.notes.mkdir()
        for name, body in FAKES.items():
            (self.bin / name).write_text(NOTE + body)
            (self.bin / name).chmod(0o755)

    def env(self, **more):
        unwanted = ("PYTHON", "ASCEND_", "MS_", "RANK_", "MSLLM_", "GLOG_", "HCCL_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        return kept | {"PYTHON": str(self.bin / "python"), "NOTES": str(self.notes)} | more

    def start(self, script, *arguments, **more):
        return subprocess.Popen(
            ["bash", str(ASCEND / script), *map(str, arguments)],
            cwd=self.folder,
            env=self.env(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script, *arguments, **more):
        process = self.start(script, *arguments, **more)
        out, error = process.communicate(timeout=30)
        return process.returncode, out, error

    def args(self, who):
        return (self.notes / f"{who}.args").read_text().split("\0")[1:-1]

    def seen(self, who):
        return dict(line.split("=", 1) for line in (self.notes / f"{who}.env").read_text().split("\0") if "=" in line)

    def wait_for(self, *names):
        end = time.monotonic() + 10
        while not all((self.notes / name).exists() for name in names):
            assert time.monotonic() < end, f"{names} not there: {sorted(p.name for p in self.notes.iterdir())}"
            time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    left = [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if _mentions(path, str(made.notes))]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left, "processes were left"


def _mentions(environ, text):
    try:
        return text.encode() in environ.read_bytes()
    except OSError:
        return False


def environment(cluster):
    return [f'export PATH={cluster.bin}:"$PATH"', f"export PYTHONPATH={REPOSITORY}${{PYTHONPATH:+:$PYTHONPATH}}"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, script.name], cwd=script.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda path: path.name)
def test_help_names_every_option(cluster, script):
    code, out, _ = cluster.run(script.name, "--help")
    own = re.search(r"own_option\(\) \{\n.*?\n\}", script.read_text(), re.DOTALL)
    shared = re.search(r"shared_option\(\) \{\n.*?\n\}", (ASCEND / "common.sh").read_text(), re.DOTALL)[0]
    refused = {"--cards", "--port", "--join-timeout"} if "rank_table" in script.name else set()
    known = set(re.findall(r"(--[a-z][a-z-]+)(?= \||\))", shared + (own[0] if own else ""))) - {"--help"}
    assert code == 0 and len(known) >= 6
    assert set(re.findall(r"^  (--[a-z-]+)", out, re.MULTILINE)) == known - refused


def test_workers_start_for_the_commands_that_join():
    source = "".join(path.read_text() for path in (REPOSITORY / "msllm" / "commands").glob("*.py"))
    joining = set(re.findall(r'start_command\("(\w+)"', source))
    assert joining == set(re.findall(r"\$\{1:-\} == (\w+)", (ASCEND / "common.sh").read_text()))


NODE = "--worker_num=8 --local_worker_num=8"
REST = "--cluster_time_out=600 --log_dir=logs --join=True --tail_worker_log=0 python -m msllm pretrain --data 'my data'"
TRAIN = ("--", "pretrain", "--data", "my data")


def test_one_node_dry_run(cluster):
    code, out, error = cluster.run("launch_node.sh", "--cards", 8, "--dry-run", *TRAIN)
    assert (code, error) == (0, "")
    assert out.splitlines() == [*environment(cluster), f"msrun {NODE} --master_port=8118 {REST}"]
    assert not list(cluster.notes.iterdir()) and not (cluster.folder / "logs").exists()


def test_one_node_runs_what_the_dry_run_shows(cluster):
    line = ("--cards", 2, "--port", PORT, "--log-dir", "out/logs", "--join-timeout", 60)
    _, shown, _ = cluster.run("launch_node.sh", *line, "--dry-run", *TRAIN)
    code, _, error = cluster.run("launch_node.sh", *line, *TRAIN, PYTHONPATH="/mine")
    assert (code, error) == (0, "")
    assert ["msrun", *cluster.args("msrun")] == shlex.split(shown.splitlines()[-1])
    seen = cluster.seen("msrun")
    assert seen["PYTHONPATH"] == f"{REPOSITORY}:/mine" and seen["PATH"].startswith(f"{cluster.bin}:")
    assert (cluster.folder / "out/logs").is_dir()


def test_the_environment_of_cann_is_sourced_where_it_is_not_set(cluster):
    script = cluster.folder / "Ascend" / "cann" / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.write_text('export ASCEND_HOME_PATH=/cann LD_LIBRARY_PATH="/cann/lib64:$NOT_SET"\n')
    place = {"ASCEND_INSTALL_PATH": str(script.parents[1])}
    _, out, _ = cluster.run("launch_node.sh", "--cards", 1, "--dry-run", *TRAIN, **place)
    assert out.splitlines()[1] == f"source {script}"
    code, _, error = cluster.run("launch_node.sh", "--cards", 1, "--port", PORT, *TRAIN, **place)
    assert (code, error) == (0, "") and cluster.seen("msrun")["ASCEND_HOME_PATH"] == "/cann"
    _, out, _ = cluster.run("launch_node.sh", "--cards", 1, "--dry-run", *TRAIN, ASCEND_HOME_PATH="/other", **place)
    assert "source" not in out


def test_cards_are_counted(cluster):
    _, out, _ = cluster.run("launch_node.sh", "--dry-run", *TRAIN, ASCEND_RT_VISIBLE_DEVICES="0,2,5")
    assert "--worker_num=3 --local_worker_num=3" in out
    for name in ("davinci0", "davinci1", "davinci10", "davinci_manager"):
        (cluster.folder / name).touch()
    count = f"source {ASCEND}/common.sh; count_cards {cluster.folder}; count_cards {cluster.notes}"
    done = subprocess.run(["bash", "-c", count], capture_output=True, text=True, env=cluster.env())
    assert done.stdout.split() == ["3", "0"]


def test_a_failed_worker_is_named(cluster):
    words = 'mkdir -p logs; echo "error: data is empty" >logs/worker_1.log; exit 1'
    code, _, error = cluster.run("launch_node.sh", "--cards", 2, "--port", PORT, *TRAIN, FAKE_MSRUN=words)
    assert code == 1
    assert error == ("error: msrun failed: exit code 1, logs/worker_1.log:error: data is empty; see the logs in logs\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_workers_save(cluster, number):
    process = cluster.start("launch_node.sh", "--cards", 2, "--port", PORT, *TRAIN, FAKE_MSRUN=WORKERS)
    cluster.wait_for("worker_0", "worker_1")
    os.killpg(process.pid, number)  # as a terminal: the script's group
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert (cluster.notes / "saved_0").exists() and (cluster.notes / "saved_1").exists()
    assert error.startswith(f"SIG{number.name[3:]}: the workers save a checkpoint and end, within 60 s")


def test_a_second_signal_ends_workers_that_do_not_listen(cluster):
    deaf = WORKERS.replace("trap", "trap : TERM; true").replace("exit 1", "sleep 60")
    process = cluster.start("launch_node.sh", "--cards", 2, "--port", PORT, *TRAIN, FAKE_MSRUN=deaf)
    cluster.wait_for("worker_0", "worker_1")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("SIGTERM: ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_workers_that_take_too_long_are_ended(cluster):
    deaf = WORKERS.replace("trap", "trap : TERM; true")
    line = ("--cards", 2, "--port", PORT, "--patience", 1)
    process = cluster.start("launch_node.sh", *line, *TRAIN, FAKE_MSRUN=deaf)
    cluster.wait_for("worker_0", "worker_1")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


CLUSTER = "--worker_num=16 --local_worker_num=8 --master_addr=10.0.0.1"


def test_a_node_of_several_dry_run(cluster):
    line = ("--nodes", 2, "--node-rank", 1, "--master-addr", "10.0.0.1", "--cards", 8, "--dry-run")
    code, out, error = cluster.run("launch_cluster.sh", *line, *TRAIN)
    assert (code, error) == (0, "")
    assert out.splitlines() == [*environment(cluster), f"msrun {CLUSTER} --node_rank=1 --master_port=8118 {REST}"]


@pytest.fixture
def hosts(cluster):
    path = cluster.folder / "hosts"
    path.write_text("# first\n127.0.0.2\n\nme@second.example  # rank 1\n")
    return path


def test_hosts_dry_run(cluster, hosts):
    line = ("--hosts", hosts, "--master-addr", "10.0.0.1", "--cards", 8, "--dry-run")
    code, out, error = cluster.run("launch_cluster.sh", *line, *TRAIN, MSLLM_KERNELS="stock", HCCL_IF_IP="10.0.0.1")
    assert (code, error) == (0, "")
    *start, remote, local = out.splitlines()
    assert start == environment(cluster)
    assert local == f"msrun {CLUSTER} --node_rank=0 --master_port=8118 {REST}"
    *words, command = shlex.split(remote.removesuffix(" >logs/node_1.log 2>&1 &"))
    assert words == ["ssh", "-tt", "-o", "BatchMode=yes", "me@second.example"]
    assert command == (
        f"cd {cluster.folder} && env PYTHON={cluster.bin}/python MSLLM_KERNELS=stock HCCL_IF_IP=10.0.0.1 bash "
        f"{ASCEND}/launch_cluster.sh --nodes 2 --node-rank 1 --master-addr 10.0.0.1 --cards 8 --port 8118 "
        f"--log-dir logs --join-timeout 600 --patience 60 -- pretrain --data 'my data'"
    )


def test_hosts_start_the_other_node_with_its_own_rank(cluster, hosts):
    remote = 'bash -c "${!#/ -- / --dry-run -- }"'  # what the other side would run, shown by its own dry run
    line = ("--hosts", hosts, "--cards", 8, "--port", PORT)
    code, _, error = cluster.run("launch_cluster.sh", *line, *TRAIN, FAKE_SSH=remote)
    assert (code, error) == (0, "")
    shown = (cluster.folder / "logs/node_1.log").read_text().splitlines()[-1]
    first, second = cluster.args("msrun"), shlex.split(shown)[1:]
    assert second == [word.replace("--node_rank=0", "--node_rank=1") for word in first] != first
    assert "--master_addr=127.0.0.2" in first and "--worker_num=16" in first


def test_a_failed_node_ends_the_first_one(cluster, hosts):
    process = cluster.start(
        "launch_cluster.sh",
        *("--hosts", hosts, "--cards", 2, "--port", PORT),
        *TRAIN,
        FAKE_MSRUN=WORKERS,
        FAKE_SSH='until [[ -e $NOTES/worker_1 ]]; do sleep 0.1; done; echo "disk is full"; exit 3',
    )
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1 and (cluster.notes / "saved_0").exists()
    assert (
        "error: node 1 (me@second.example) failed: exit code 3, the last line of logs/node_1.log: disk is full; the "
        "others are stopped; start again with --resume auto\n"
    ) in error


SECOND = ("--nodes", 2, "--node-rank", 1, "--master-addr", "10.0.0.1", "--cards", 8)
REFUSED = {
    "no arguments": ("node", (), "nothing to run: put it after --"),
    "nothing after --": ("node", ("--cards", 8, "--"), "got ''"),
    "another command": ("node", ("--cards", 8, "--", "info"), "msllm pretrain or msllm finetune"),
    "no card": ("node", TRAIN, "no Ascend card here"),
    "no number": ("node", ("--cards", "x", *TRAIN), "--cards is 'x', expected a whole number above 0"),
    "port": ("node", ("--port", 80, *TRAIN), "--port is 80, expected 1024 to 65535"),
    "unknown option": ("node", ("--card", 8, *TRAIN), "unknown option '--card'; see launch_node.sh --help"),
    "no master": ("cluster", (*SECOND[:4], *TRAIN), "--master-addr is missing"),
    "rank": ("cluster", ("--node-rank", 2, *SECOND[:2], *SECOND[4:], *TRAIN), "expected 0 to 1 of 2 nodes"),
    "one node": ("cluster", ("--nodes", 1, "--node-rank", 0, *SECOND[4:], *TRAIN), "use launch_node.sh"),
    "loopback": ("cluster", (*SECOND[:4], "--master-addr", "localhost", *TRAIN), "means another machine on every node"),
    "hosts and nodes": ("cluster", ("--hosts", "hosts", "--nodes", 2, *TRAIN), "leave out --nodes and --node-rank"),
    "no hosts": ("cluster", ("--hosts", "nobody", *TRAIN), "--hosts is 'nobody', which cannot be read"),
    "a host twice": ("cluster", ("--hosts", "twice", *TRAIN), "twice, line 2: host 'a' stands there twice"),
    "two words": ("cluster", ("--hosts", "words", *TRAIN), "words, line 1: 'a slots=8', expected one host"),
    "another master": ("cluster", (*SECOND[:3], 0, *SECOND[4:], *TRAIN), "10.0.0.1 is none of this machine's"),
    "second on master": (
        "cluster",
        (*SECOND[:5], "127.0.0.2", *SECOND[6:], *TRAIN),
        "is this machine's: that is node 0",
    ),
    "no table": ("rank_table", TRAIN, "--table is missing"),
    "unreadable table": ("rank_table", ("--table", "x.json", *TRAIN), "--table is 'x.json', which cannot be read"),
    "cards of a table": ("rank_table", ("--cards", 8, *TRAIN), "--cards does not go with a rank table"),
    "broken table": ("rank_table", ("--table", "twice", *TRAIN), "is no rank table"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line(cluster, case):
    script, arguments, message = REFUSED[case]
    (cluster.folder / "hosts").write_text("a\nb\n")
    (cluster.folder / "twice").write_text("a\na\n")
    (cluster.folder / "words").write_text("a slots=8\n")
    code, out, error = cluster.run(f"launch_{script}.sh", *arguments)
    assert (code, out) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (cluster.notes / "msrun.args").exists()


def test_a_port_in_use_and_a_wrong_python_are_refused(cluster):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, _, error = cluster.run("launch_node.sh", "--cards", 8, "--port", port, *TRAIN)
    assert code == 2 and error == f"error: port {port} of 127.0.0.1 cannot be used: EADDRINUSE; give --port\n"
    (cluster.bin / "python3.11").symlink_to(sys.executable)
    for name, message in (("python3.11", "msrun starts only a program called python"), ("no", "is not a program")):
        code, _, error = cluster.run("launch_node.sh", "--cards", 8, *TRAIN, PYTHON=str(cluster.bin / name))
        assert code == 2 and message in error


@pytest.fixture
def table(cluster):
    path = cluster.folder / "table.json"
    device = '{{"device_id": "{0}", "device_ip": "192.0.2.{1}", "rank_id": "{1}"}}'
    servers = [
        f'{{"server_id": "{address}", "device": [{device.format(2, first)}, {device.format(5, first + 1)}]}}'
        for address, first in (("192.0.2.1", 0), ("127.0.0.2", 2))
    ]
    path.write_text(f'{{"version": "1.0", "server_count": "2", "server_list": [{", ".join(servers)}]}}')
    return path


def rank_command(table, rank, device):
    return (
        f"env RANK_TABLE_FILE={table} RANK_SIZE=4 RANK_ID={rank} DEVICE_ID={device} python -m msllm pretrain "
        f"--data 'my data' >logs/rank_{rank}.log 2>&1 &"
    )


def test_rank_table_dry_run(cluster, table):
    check = f"python -m msllm ranktable check {table}"
    code, out, error = cluster.run("launch_rank_table.sh", "--table", "table.json", "--dry-run", *TRAIN)
    assert (code, error) == (0, "")
    ours = [rank_command(table, 2, 2), rank_command(table, 3, 5)]
    assert out.splitlines() == [*environment(cluster), check, *ours]
    named = ("--table", table, "--server-id", "192.0.2.1", "--dry-run")
    _, out, _ = cluster.run("launch_rank_table.sh", *named, *TRAIN)
    assert out.splitlines()[3:] == [rank_command(table, 0, 2), rank_command(table, 1, 5)]
    code, _, error = cluster.run("launch_rank_table.sh", *named[:3], "x", *TRAIN)
    assert code == 2 and error == f"error: --server-id is 'x', and {table} has 192.0.2.1, 127.0.0.2\n"


def test_rank_table_runs_a_process_a_card(cluster, table):
    code, out, error = cluster.run(
        "launch_rank_table.sh", "--table", table, *TRAIN, FAKE_RANK='echo "step 1 of rank $RANK_ID"; sleep 0.3'
    )
    assert (code, error) == (0, "")
    assert "step 1 of rank 2" in out and "rank 3" not in out  # the first rank here is followed on the terminal
    assert cluster.args("check") == ["-m", "msllm", "ranktable", "check", str(table)]
    for rank, device in (("2", "2"), ("3", "5")):
        assert cluster.args(f"rank_{rank}") == ["-m", "msllm", *TRAIN[1:]]
        seen = cluster.seen(f"rank_{rank}")
        assert [seen[k] for k in ("RANK_TABLE_FILE", "RANK_SIZE", "RANK_ID", "DEVICE_ID")] == [
            *(str(table), "4", rank, device)
        ]
        assert (cluster.folder / f"logs/rank_{rank}.log").read_text() == f"step 1 of rank {rank}\n"


def test_a_bad_rank_table_starts_nothing(cluster, table):
    code, _, error = cluster.run("launch_rank_table.sh", "--table", table, *TRAIN, FAKE_CHECK="error: rank 3 twice")
    assert (code, error) == (2, "error: rank 3 twice\n")
    assert not list(cluster.notes.glob("rank_*"))


LISTENING = 'trap "echo saved; exit 2" TERM; touch "$NOTES/up_$RANK_ID"; while :; do sleep 0.1; done'


def test_a_failed_rank_ends_the_others(cluster, table):
    body = f'[[ $RANK_ID == 2 ]] || {{ sleep 0.3; echo "out of memory"; echo; kill -KILL $$; }}; {LISTENING}'
    code, _, error = cluster.run("launch_rank_table.sh", "--table", table, *TRAIN, FAKE_RANK=body)
    assert code == 1
    assert error == (
        "error: rank 3 failed: killed by SIGKILL, the last line of logs/rank_3.log: out of memory; the others are "
        "stopped; start again with --resume auto\n"
    )
    assert (cluster.folder / "logs/rank_2.log").read_text().endswith("saved\n")


def test_ctrl_c_lets_all_ranks_save(cluster, table):
    process = cluster.start("launch_rank_table.sh", "--table", table, *TRAIN, FAKE_RANK=LISTENING)
    cluster.wait_for("up_2", "up_3")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    for rank in (2, 3):
        assert (cluster.folder / f"logs/rank_{rank}.log").read_text().endswith("saved\n")
