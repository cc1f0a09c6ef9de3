"""The command line on bad days: a clear error, what to do, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from kawarimi_testbed.network import existing_namespaces
from kawarimi_testbed.paths import run_dir, state_dir
from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import ExitCode
from leftovers import leftovers

KAWARIMI = [sys.executable, "-m", "kawarimi_bridge.cli.main"]
BAD = Topology(name="bad", guests=1)
ALONE = ["testbed", "up", "--name", "bad", "--guests", "1", "--json"]


def kawarimi(*words: str, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()):
    return subprocess.run(
        [*prefix, *KAWARIMI, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
        check=False,
    )


def refused(done: subprocess.CompletedProcess, slug: str) -> dict:
    error = json.loads(done.stdout)["error"]
    assert error["slug"] == slug
    assert done.returncode == error["exit_code"] == ExitCode.REFUSED
    assert error["hint"]
    assert error["untouched"]
    assert f"error [{slug}]" in done.stderr
    assert "Traceback" not in done.stderr
    return error


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, tmp_path, monkeypatch) -> Iterator[Path]:
    """Temporary files go to a folder of the test; nothing may be left, there or elsewhere."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    yield folder
    assert leftovers(BAD, tmp_path) == []
    assert list(folder.iterdir()) == []


def until(condition: Callable[[], object], what: str, deadline_s: float = 60) -> None:
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not in {deadline_s} s"
        time.sleep(0.05)


def test_not_root():
    # Another user, who may still read this checkout, wherever it is.
    drop = ["--reuid", "65534", "--clear-groups"]
    drop += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    refused(kawarimi(*ALONE, prefix=("setpriv", *drop, "--")), "not-root")


def test_no_qemu(tmp_path):
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else []:
            link = tmp_path / program.name
            if program.name != "qemu-system-x86_64" and not link.is_symlink():
                link.symlink_to(program)
    error = refused(kawarimi(*ALONE, env={"PATH": str(tmp_path)}), "program-missing")
    assert error["facts"]["missing"] == ["qemu-system-x86_64"]
    assert "make setup" in error["hint"]


def test_no_disk_space(tmp_path):
    small = ["unshare", "--mount", "sh", "-c"]
    script = f'mount -t tmpfs -o size=64M small {tmp_path} && exec "$@"'
    done = kawarimi(*ALONE, env={"XDG_CACHE_HOME": str(tmp_path)}, prefix=(*small, script, "sh"))
    error = refused(done, "no-space")
    assert error["facts"]["free_bytes"] <= 64 * 2**20
    assert list(tmp_path.iterdir()) == []


def test_a_namespace_in_use(image):
    taken = BAD.namespace("hostb")
    subprocess.run(["ip", "netns", "add", taken], check=True)
    try:
        error = refused(kawarimi(*ALONE), "namespace-in-use")
        assert error["facts"]["namespaces"] == [taken]
        assert existing_namespaces() & set(BAD.namespaces) == {taken}
    finally:
        subprocess.run(["ip", "netns", "delete", taken], check=True)


def test_a_testbed_of_that_name_runs_already(testbed):
    done = kawarimi("testbed", "up", "--name", testbed.topology.name, "--json")
    refused(done, "testbed-exists")


def test_bad_usage():
    for words in (
        ["testbed", "up", "--guests", "0"],
        ["testbed", "up", "--guests", "99"],
        ["testbed", "up", "--name", "Not A Name"],
        ["testbed", "up", "--hca", "connectx"],
        ["testbed", "no-such-command"],
        ["no-such-command"],
    ):
        done = kawarimi(*words, "--json")
        assert done.returncode == ExitCode.USAGE
        assert json.loads(done.stdout)["error"]["slug"] == "bad-usage"


def test_unknown_guest(testbed):
    done = kawarimi("testbed", "sh", "--name", testbed.topology.name, "vm9", "true")
    assert done.returncode == ExitCode.USAGE
    assert "unknown-guest" in done.stderr
    assert "vm1, vm2" in done.stderr


def test_no_such_testbed():
    for words in (["status"], ["sh", "vm1", "true"], ["logs"], ["down"]):
        name = ["--name", "bad"]
        done = kawarimi("testbed", words[0], *name, *words[1:])
        assert done.returncode == ExitCode.FAILED
        assert "testbed-not-running" in done.stderr


def test_a_corrupted_cache_entry(image, tmp_path):
    copy = tmp_path / "kawarimi/testbed" / image.folder.name
    shutil.copytree(image.folder, copy, copy_function=os.link)
    damaged = copy / "initrd.img"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()  # the copy is a hard link: the real entry must stay as it is
    damaged.write_bytes(content)
    error = refused(kawarimi(*ALONE, env={"XDG_CACHE_HOME": str(tmp_path)}), "cache-corrupt")
    assert "--rebuild" in error["hint"]
    assert copy.exists()


def test_a_build_that_fails_names_a_log_that_is_there(tmp_path):
    broken = tmp_path / "bin/mmdebstrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho E: the mirror is closed on Mondays >&2\nexit 25\n")
    broken.chmod(0o755)
    path = f"{broken.parent}:{os.environ['PATH']}"
    done = kawarimi(
        *("testbed", "build", "--json"), env={"PATH": path, "XDG_CACHE_HOME": str(tmp_path)}
    )
    assert done.returncode == ExitCode.FAILED
    error = json.loads(done.stdout)["error"]
    assert error["slug"] == "command-failed"
    log = Path(error["facts"]["log"])
    assert str(log) in error["hint"]
    assert "E: the mirror is closed on Mondays" in log.read_text()
    assert [path.name for path in tmp_path.glob("kawarimi/testbed/*")] == ["lock"]


@contextlib.contextmanager
def begun(*words: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [*KAWARIMI, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def descendants(process: subprocess.Popen, program: str = "") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if program in " ".join(child.cmdline()):
                found.append(child)
    return found


def ended(processes: list[psutil.Process]) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_is_ended(tmp_path, scratch, number):
    """Ended in the middle of mmdebstrap, when its mounts are there."""
    with begun("testbed", "build", "--json", env={"XDG_CACHE_HOME": str(tmp_path)}) as process:
        until(
            lambda: any(tmp_path.glob("kawarimi/testbed/.building-*/work/root/etc")),
            "mmdebstrap unpacks",
        )
        helpers = descendants(process)
        assert descendants(process, "mmdebstrap")
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        until(lambda: ended(helpers), "the helpers have ended")
    if number != signal.SIGKILL:
        assert process.returncode == ExitCode.INTERRUPTED
        assert json.loads(output)["error"]["slug"] == "interrupted"
        assert [path.name for path in tmp_path.glob("kawarimi/testbed/*")] == ["lock"]
        assert list(state_dir().iterdir()) == []
    else:
        # Nobody could clean up; what is left does not look built, and the next build sweeps it.
        left = {path.name[:9] for path in tmp_path.glob("kawarimi/testbed/*")}
        assert left == {"lock", ".building"}
        shutil.rmtree(scratch)
        scratch.mkdir()


def test_sigterm_ends_what_a_script_has_in_the_background(tmp_path):
    """There interrupts are ignored, and a polite end must not be."""
    lock = tmp_path / "kawarimi/testbed/lock"
    lock.parent.mkdir(parents=True)
    script = "trap '' INT; exec \"$@\""
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", *KAWARIMI, "testbed", "build"],
            stderr=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            text=True,
        )
        until(
            lambda: str(lock) in [file.path for file in psutil.Process(process.pid).open_files()],
            "it waits for the lock",
        )
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "error [interrupted]" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_start_is_ended(image, number):
    """Ended while the guest boots: its QEMU runs, its namespaces are there."""
    with begun(*ALONE, env={}) as process:
        until(lambda: (run_dir("bad") / "vm1@hosta/qmp.sock").exists(), "QEMU runs")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == ExitCode.INTERRUPTED
        assert json.loads(output)["error"]["slug"] == "interrupted"
    until(lambda: not leftovers(BAD), "everything is gone", 20)


def test_a_killed_keeper_takes_its_guests_with_it(image):
    """PR_SET_PDEATHSIG ends the QEMUs at once; the next `down` removes the namespaces."""
    with begun(*ALONE, env={}) as process:
        until(lambda: (run_dir("bad") / "vm1@hosta/qmp.sock").exists(), "QEMU runs")
        (keeper,) = descendants(process, "kawarimi_testbed.keeper")[:1]
        qemus = descendants(process, "qemu-system")
        assert qemus
        keeper.kill()
        until(lambda: ended(qemus), "the QEMUs have ended")
        process.communicate(timeout=120)
        assert process.returncode == ExitCode.FAILED
    assert existing_namespaces() & set(BAD.namespaces)
    assert kawarimi("testbed", "down", "--name", "bad").returncode == ExitCode.COMPLETED


def test_up_status_sh_logs_down_beside_another_testbed(testbed):
    up = kawarimi(*ALONE, "--no-hca")
    assert up.returncode == ExitCode.COMPLETED, up.stderr
    logs = Path(json.loads(up.stdout)["logs"])
    name = ["--name", "bad"]
    status = json.loads(kawarimi("testbed", "status", *name, "--json").stdout)
    (guest,) = status["guests"]
    assert (guest["guest"], guest["host"], guest["verbs"]) == ("vm1", "hosta", "no verbs device")
    ended = kawarimi("testbed", "sh", *name, "vm1", "echo out; echo err >&2; exit 9")
    assert (ended.returncode, ended.stdout, ended.stderr) == (9, "out\n", "err\n")
    listed = json.loads(kawarimi("testbed", "logs", *name, "--json").stdout)["files"]
    assert {Path(file).name for file in listed} >= {
        *("console.log", "agent.log", "qmp.log", "command-line", "vm1-kernel.log", "keeper.log")
    }
    assert kawarimi("testbed", "down", *name).returncode == ExitCode.COMPLETED
    assert not logs.exists()


def test_help_is_quick_and_lazy():
    loaded = (
        "import sys; from kawarimi_bridge.cli.main import main; main(['--help']);"
        "print([m for m in sys.modules if m.startswith(('kawarimi_testbed', 'qemu', 'asyncio'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.endswith("[]\n")
