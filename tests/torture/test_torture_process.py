"""Real processes: T4 killed at any time and at every failpoint, T11 many at once; locks, full and read-only disks."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.faults import SEED, SHA, Failing, Tally, disk, header, sizes, step
from helpers.paths import HELPERS

from zoedge.core import storage
from zoedge.errors import LockedError, StorageError
from zoedge.log import lock
from zoedge.log.log import Log
from zoedge.run import folder as run_folder
from zoedge.run import setup

CHILD = HELPERS / "child.py"
STEPS = 60


def child(
    folder: Path, sync_every: int = 1, pause: float = 0.0, point: str = "", steps: int = STEPS, **more: Any
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "ZOEDGE_FAILPOINT": point, "PYTHONPATH": str(Path(storage.__file__).parents[2])}
    argv = [sys.executable, str(CHILD), str(folder), str(steps), str(sync_every), str(pause)]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def finished(folder: Path, sync_every: int = 1, **more: Any) -> tuple[bytes, bytes]:
    """(the log, the export) of a run that goes on undisturbed."""
    process = child(folder, sync_every, **more)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("exported\n"), err
    return (folder / "run.zlog").read_bytes(), (folder / "adapter" / "weights").read_bytes()


def judged(tally: Tally, folder: Path, said: list[str]) -> None:
    """After a kill: all that was said is there, synced or not; the export is whole or is not there."""
    path = folder / "run.zlog"
    steps = [int(line) for line in said if line.isdigit()]
    tally.cases += 1
    tally.recovered += 1
    if not path.exists():
        tally.lost += bool(said)
        return
    log = Log.open(path)
    tally.lost += bool(steps) and len(log) < steps[-1]
    if (folder / "adapter" / "zoedge.json").exists():
        facts = json.loads((folder / "adapter" / "zoedge.json").read_text())
        tally.wrong += (
            len((folder / "adapter" / "weights").read_bytes()) != 1200
            or facts["state"][:48] != (log.state.end or b"").hex()
        )
    else:
        tally.lost += "exported" in said


# -- T4


@pytest.mark.parametrize("kills, sync_every", sizes([(25, 1), (25, 64)], [(1_000, 1), (1_000, 64)]))
def test_t4_killed_at_any_time(tmp_path: Path, kills: int, sync_every: int) -> None:
    """Killed at a random step, and again, until it is done: the bytes of a run that was never killed."""
    whole, tally, chance = (
        finished(tmp_path / "whole", sync_every),
        Tally(f"T4 kills W={sync_every}"),
        random.Random(SEED),
    )
    rounds = 0
    while tally.cases < kills:
        folder = tmp_path / f"run-{(rounds := rounds + 1)}"
        for _ in range(3):
            process = child(folder, sync_every)
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(chance.randrange(0, STEPS + 3))]
            time.sleep(chance.random() * (0.15 if not said else 0.002))
            process.send_signal(signal.SIGKILL)
            said += process.communicate(timeout=60)[0].split("\n")
            judged(tally, folder, [line.strip() for line in said if line.endswith("\n") or line])
        tally.wrong += finished(folder, sync_every) != whole
    tally.close()


@pytest.mark.parametrize("counts", sizes([[2]], [[1, 3, 7, 12]]))
def test_t4_killed_at_every_failpoint(tmp_path: Path, counts: list[int]) -> None:
    whole, tally = finished(tmp_path / "whole"), Tally("T4 failpoints")
    for name in storage.FAILPOINTS:
        for count in counts:
            once = name.startswith("export") or (name == "file.mid" and count > 3)
            folder = tmp_path / f"{name}-{count}"
            if name == "export.swap":
                finished(folder)
            process = child(folder, point=f"{name}:{1 if once else count}:kill")
            out, _ = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, f"{name} was not reached"
            judged(tally, folder, out.split())
            assert finished(folder) == whole
            assert not [p for p in folder.iterdir() if p.is_dir() and p.name != "adapter"], "nothing is left over"
    tally.close()


def test_every_failpoint_stands_once_in_the_source() -> None:
    source = "".join(p.read_text() for p in Path(storage.__file__).parents[1].rglob("*.py"))
    for name in storage.FAILPOINTS:
        assert len(re.findall(rf'(point\(|, )"{re.escape(name)}"\)', source)) == 1, name
    for spec in ("append.mid", "append.mid:1", "nowhere:1:kill", "append.mid:1:explode", "append.mid:x:kill"):
        with pytest.raises(ValueError):
            storage.arm_failpoint(spec)
    assert storage.armed_failpoint.name == ""


@pytest.mark.parametrize("name", ["append.before", "append.mid", "append.after", "sync.before"])
@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_a_failpoint_that_is_an_error(tmp_path: Path, name: str, action: str) -> None:
    process = child(tmp_path / "run", point=f"{name}:20:{action}")
    _, err = process.communicate(timeout=60)
    assert (process.returncode == 74 and os.strerror(getattr(errno, action)) in err) or f"injected {action}" in err
    log = Log.open(tmp_path / "run" / "run.zlog")
    assert 15 <= len(log) <= 20 and not (tmp_path / "run" / "adapter").exists()
    finished(tmp_path / "run")


def test_an_unarmed_failpoint_costs_nothing() -> None:
    """Measured 80 ns on one of two cores of a Xeon; an append without a sync takes 28,000."""
    best = min(_timed() for _ in range(5))
    assert best < 2e-6


def _timed(count: int = 20_000) -> float:
    began = time.perf_counter()
    for _ in range(count):
        storage.reach_failpoint("append.before")
    return (time.perf_counter() - began) / count


# -- T11

RIVALS = """
import os, sys, time
from pathlib import Path
from zoedge.errors import LockedError
from zoedge.log.log import Log
from zoedge.core.types import Record
path, rounds = Path(sys.argv[1]), int(sys.argv[2])
for _ in range(rounds):
    children = []
    for i in range(8):
        if not (pid := os.fork()):
            try:
                with Log.resume(path) as log:
                    for _ in range(3):
                        log.append(Record(len(log), log.next_seq, 0.5, (1.0,), (0.5, 0.25)))
                    time.sleep(0.002)
                os._exit(0)
            except LockedError as e:
                os._exit(e.exit_code)
            except BaseException:
                os._exit(70)
        children.append(pid)
    print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children), flush=True)
"""


@pytest.mark.parametrize("rounds", sizes([20], [1_000]))
def test_t11_eight_processes_resume_one_run(tmp_path: Path, rounds: int) -> None:
    """Who has the lock appends, the others exit 6 at once; every append of every winner is there."""
    path, tally = tmp_path / "run.zlog", Tally("T11 rivals")
    Log.create(path, header(hash_every=100_000)).close()
    env = {**os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[2])}
    argv = [sys.executable, "-c", RIVALS, str(path), str(rounds)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    codes = [int(code) for code in done.stdout.split()]
    tally.cases, tally.recovered, tally.detected = len(codes), codes.count(0), codes.count(6)
    tally.lost = 3 * codes.count(0) - len(Log.open(path))
    assert all("0" in line.split() for line in done.stdout.splitlines())
    tally.close()
    assert len(codes) == 8 * rounds and codes.count(6)


# -- one writer


def test_the_holder_is_named(tmp_path: Path) -> None:
    process = child(tmp_path / "run", pause=0.2)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    began = time.monotonic()
    with pytest.raises(LockedError, match=f"another zoedge process \\(pid {process.pid} on {socket.gethostname()}\\)"):
        Log.resume(tmp_path / "run" / "run.zlog")
    with pytest.raises(LockedError, match=f"pid {process.pid} on"):
        run_folder.claim_folder(tmp_path / "run")  # before a model is loaded
    assert time.monotonic() - began < 1
    other = child(tmp_path / "run")
    assert other.wait(60) == 6 and f"(pid {process.pid} on" in other.communicate()[1]
    process.kill()
    process.communicate()
    with Log.resume(tmp_path / "run" / "run.zlog"):  # the kernel freed it, whatever .lock says
        assert (tmp_path / "run" / "run.lock").read_text().split()[0] == str(os.getpid())
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize("said", [b"", b"\xff\xfe", b"1 \x1b[31mhost\n", b"12 host\nmore", b"x" * 999])
def test_a_lock_file_of_others_is_not_believed(tmp_path: Path, said: bytes) -> None:
    with Log.create(tmp_path / "run.zlog", header()):
        (tmp_path / "run.lock").write_bytes(said)
        with pytest.raises(LockedError, match="another zoedge process is writing this run"):
            Log.resume(tmp_path / "run.zlog")


def test_a_pid_from_before_a_reboot_is_not_named(tmp_path: Path) -> None:
    """On a disk that two hosts share, say: the lock is held by somebody, but not by the process of that number here."""
    with Log.create(tmp_path / "run.zlog", header()):
        path = tmp_path / "run.lock"
        pid, host, boot = path.read_text().split()
        assert (pid, host) == (str(os.getpid()), socket.gethostname()) and boot == lock.read_boot_id() != ""
        for said, named in (
            (f"{pid} {host} {boot}\n", True), (f"{pid} {host}\n", True), (f"{pid} elsewhere other-boot\n", True),
            (f"{pid} {host} other-boot\n", False),
        ):  # fmt: skip
            path.write_text(said)
            with pytest.raises(LockedError, match="another zoedge process is" if not named else rf"pid {pid} on"):
                Log.resume(tmp_path / "run.zlog")


def test_a_lock_file_that_is_a_symlink_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("x")
    (tmp_path / "run.lock").symlink_to(tmp_path / "victim")
    with Log.create(tmp_path / "run.zlog", header()) as log:
        step(log)
    assert (tmp_path / "victim").read_text() == "x"


FORKED = r"""
import os, signal, sys, time
from pathlib import Path
from zoedge.errors import StorageError
from zoedge.log.log import Log
from zoedge.core.types import Record
log = Log.resume(Path(sys.argv[1]))
if not os.fork():
    try:
        log.append(Record(0, 0, 0.5, (1.0,), (0.5,)))
        print("appended", flush=True)
    except StorageError:
        print(f"refused {os.getpid()}\n", end="", flush=True)  # one write: the parent prints too
    log.close()
    time.sleep(60)
log.append(Record(0, 0, 0.5, (2.0,), (0.5,)))
print("parent\n", end="", flush=True)
time.sleep(60)
"""


def test_a_forked_child_keeps_no_lock_and_cannot_append(tmp_path: Path) -> None:
    """As a data loader's worker, which outlives its killed parent: flock belongs to the descriptor, which fork copies."""
    path = tmp_path / "run.zlog"
    Log.create(path, header()).close()
    env = {**os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", FORKED, str(path)], env=env, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    said = sorted(parent.stdout.readline().split() for _ in range(2))
    assert [words[0] for words in said] == ["parent", "refused"]
    worker = int(said[1][1])
    with pytest.raises(LockedError):
        Log.resume(path)
    assert (tmp_path / "run.lock").exists(), "the child took nothing away"
    parent.kill()
    parent.wait(30)
    try:
        os.kill(worker, 0)  # it lives
        with Log.resume(path) as log:
            assert [r.g for r in log] == [(2.0,)]
    finally:
        os.kill(worker, signal.SIGKILL)
        parent.stdout.close()


def test_a_child_that_executes_another_program_has_no_descriptor(tmp_path: Path) -> None:
    with Log.create(tmp_path / "run.zlog", header()):
        code = "import os; print([os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd') if f > '2'])"
        out = subprocess.run([sys.executable, "-c", code], close_fds=False, capture_output=True, text=True, check=False)
        assert "run.zlog" not in out.stdout


def test_two_that_begin_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one is told so, and leaves the faster one's log alone."""
    path = tmp_path / run_folder.LOG_FILE
    monkeypatch.setattr(setup, "dump_recipe", lambda recipe: "")

    class Bench:
        recipe = None

        def header(self) -> Any:
            return header()

    with setup.begin_run(Bench(), tmp_path) as log:  # type: ignore[arg-type]
        with pytest.raises(LockedError, match="has just begun this run"):
            setup.begin_run(Bench(), tmp_path)  # type: ignore[arg-type]
        step(log)
    assert len(Log.open(path)) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml", "run.zlog"]


# -- disks


def mounted(script: str, folder: Path, *args: str) -> str:
    """What a shell script says in a namespace of its own, where it may mount a tmpfs on `folder`."""
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[2])}
    argv = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=64k none "$0" || exit 77\n{script}',
        str(folder),
        *args,
    ]
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {done.stderr.strip()}")
    return done.stdout + done.stderr


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """A 64 KiB tmpfs fills: exit 74; with room again the run ends in the bytes of one that always had it."""
    run = f'"{sys.executable}" "{CHILD}" "$0/run" 400 1 > "$0.said"; echo code $?'
    fill = 'mkdir "$0/run"; head -c 40000 /dev/zero > "$0/ballast"'
    script = f'{fill}; {run}; cp "$0/run/run.zlog" "$0.zlog"; rm "$0/ballast"; {run}\n'
    said = mounted(script + 'cp "$0/run/run.zlog" "$0.end"', tmp_path / "small")
    assert re.findall(r"code (\d+)", said) == ["74", "0"] and "No space left on device" in said, said
    full, end = Log.open(tmp_path / "small.zlog"), Log.open(tmp_path / "small.end")
    assert 200 < len(full) < 400 == len(end) and [*full] == [*end][: len(full)]
    (tmp_path / "run").mkdir()
    env = {**os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[2])}
    subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path / "run"), "400", "1"], env=env, check=True, capture_output=True
    )
    assert (tmp_path / "run" / "run.zlog").read_bytes() == (tmp_path / "small.end").read_bytes()


def test_a_real_disk_that_is_read_only(tmp_path: Path) -> None:
    """Refused before anything slow: a new run, one to resume, an export; reading goes on."""
    script = f"""
    mkdir "$0/run" && "{sys.executable}" "{CHILD}" "$0/run" 20 1 > /dev/null && mount -o remount,ro "$0"
    "{sys.executable}" "{CHILD}" "$0/run" 20 1; echo code $?
    "{sys.executable}" "{CHILD}" "$0" 20 1; echo code $?
    "{sys.executable}" -c 'import sys; from pathlib import Path; from zoedge import errors; from zoedge.log import log
from zoedge.run import folder
for name in ("run", "new"):
    try: folder.claim_folder(Path(sys.argv[1]) / name)
    except errors.StorageError as e: print("claim", e)
print(len(log.Log.open(Path(sys.argv[1]) / "run/run.zlog")))' "$0"
    """
    said = mounted(script, tmp_path / "small")
    assert re.findall(r"code (\d+)", said) == ["74", "74"] and said.count("claim") == 2 and "\n20\n" in said, said
    assert said.count("Read-only file system") == 4


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_or_a_log_without_permission(tmp_path: Path) -> None:
    Log.create(tmp_path / run_folder.LOG_FILE, header()).close()
    for path, mode in ((tmp_path / run_folder.LOG_FILE, 0o444), (tmp_path, 0o555)):
        path.chmod(mode)
        with pytest.raises(StorageError, match="Permission denied"):
            run_folder.claim_folder(tmp_path)
        path.chmod(0o755)


TABLE = """/dev/vda / ext4 rw 0 0
proc /proc proc rw 0 0
server:/home {home} nfs4 rw,local_lock=all 0 0
/dev/vdb {home}/near ext4 rw 0 0
//server/x {home}/far\\040away cifs rw 0 0
user@host: {home}/over fuse.sshfs rw 0 0
/dev/vdc {home}/over ext4 rw 0 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a table of mounts as Linux has it")
def test_a_network_file_system_is_told_by_the_table_of_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.network_filesystem(tmp_path) == storage.network_filesystem(Path("/proc")) == "", (
        "this machine's own table"
    )
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mounts").write_text(TABLE.format(home=home))
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    for path, kind in (
        (home, "nfs4"), (home / "runs" / "x", "nfs4"), (home / "far away" / "x", "cifs"), (home / "far", "nfs4"),
        (home / "near" / "x", ""), (home / "over", ""), (home / "link", ""), (tmp_path, ""), (tmp_path / "homely", ""),
    ):  # fmt: skip
        assert storage.network_filesystem(path) == kind, path


@pytest.mark.skipif(sys.platform != "linux", reason="a table of mounts as Linux has it")
def test_the_user_is_told_of_a_torn_tail_and_of_a_network_file_system(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Any
) -> None:
    whole = finished / "runs" / "tiny" / run_folder.LOG_FILE
    shutil.copytree(finished, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    path = Path("runs/tiny") / run_folder.LOG_FILE
    path.write_bytes(whole.read_bytes()[:-30])  # in END
    done = zoedge("resume", "tiny", "--plain")
    assert done.code == 0 and path.read_bytes() == whole.read_bytes()
    assert (
        "note: the log ended in an unfinished write: its 34 bytes were cut off and kept as runs/tiny/run.torn; the run "
        "goes on from step 4.\n"
    ) in done.out
    assert path.with_suffix(".torn").read_bytes() == whole.read_bytes()[-64:-30]
    assert "network" not in done.out
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mounts").write_text(f"server:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    assert run_folder.claim_folder(Path("runs/new")) == [
        "runs/new is on a network file system (nfs4), where a lock may hold on one host alone: do not write one run from "
        "two hosts."
    ]


def test_a_log_that_is_a_symlink_is_refused_before_anything_slow(tmp_path: Path) -> None:
    Log.create(tmp_path / "other.zlog", header()).close()
    for target in ("other.zlog", "absent"):
        (tmp_path / run_folder.LOG_FILE).symlink_to(tmp_path / target)
        with pytest.raises(StorageError, match="cannot open the log"):
            run_folder.claim_folder(tmp_path)
        (tmp_path / run_folder.LOG_FILE).unlink()
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    storage.write_durably(tmp_path / "out", b"x")  # takes the link's place
    assert not (tmp_path / "victim").exists() and not (tmp_path / "out").is_symlink()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file size limit")
def test_a_real_limit_of_the_file_size(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel itself write short, then fail: in the middle of a slot."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1633, 1633))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = child(tmp_path / "run", preexec_fn=limit)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 74 and "File too large" in err and out.split()[-1] == "8"
    log = Log.open(tmp_path / "run" / "run.zlog")
    assert (len(log), log.torn) == (8, 33)  # and one state hash: 9 slots
    with Log.resume(tmp_path / "run" / "run.zlog") as log:
        assert log.session(SHA[1])


def test_notes_for_people(tmp_path: Path) -> None:
    """A line that a kill has cut does not take the next one along; no symlink is followed; a full disk is exit 74."""
    run_folder.append_metric(tmp_path, event="valid", step=1, loss=0.5)
    path = tmp_path / run_folder.METRICS_FILE
    path.write_bytes(path.read_bytes() + b'{"event": "valid", "st')
    run_folder.append_metric(tmp_path, event="valid", step=3, loss=0.25)
    log = [SimpleNamespace(seq=i) for i in range(3)]
    assert run_folder.validation_losses(tmp_path, log) == {1: 0.5, 3: 0.25}
    for number in (errno.ENOSPC, errno.EIO):
        with disk(Failing(1, number)), pytest.raises(StorageError, match=re.escape(os.strerror(number))):
            run_folder.append_metric(tmp_path, event="valid", step=4)
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError):
        run_folder.append_metric(tmp_path, event="valid", step=4)
    assert not (tmp_path / "victim").exists()
