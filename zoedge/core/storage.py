"""This module is the one door to the disk, and has the failpoints at which a test can stop a process.

Everything that must survive a power cut is written through `disk`. Tests replace it by a disk that fails, or by one that
remembers what was not synced.

The variable ZOEDGE_FAILPOINT=name:count:action arms a failpoint: when `name` (of FAILPOINTS) is reached for the count-th
time, the process is killed (`kill`), or the call fails as a disk would (`ENOSPC`, `EIO`, any errno's name). A failpoint
that is not armed is one comparison: 80 ns, where an append takes 28,000 ns and the fastest sync 150,000 ns.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import StorageError, UsageError

FAILPOINTS = (
    "append.before",
    "append.mid",
    "append.after",
    "sync.before",
    "sync.after",
    "apply.mid",
    "hash.before",
    "hash.after",
    "file.mid",
    "export.begin",
    "export.marker",
    "export.swap",
    "export.end",
)


class Disk:
    """All calls that change what is on the disk. No descriptor passes to a child process, and no symlink is followed."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file, and return its descriptor."""
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)

    def write(self, fd: int, data: memoryview) -> int:
        """Write to a file, and return how many bytes were taken."""
        return os.write(fd, data)

    def datasync(self, fd: int) -> None:
        """Sync a file's data to the disk: fdatasync; on macOS F_FULLFSYNC, as its fsync stops at the drive's cache."""
        if hasattr(fcntl, "F_FULLFSYNC"):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """Sync a file's data, size and times."""
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file to `size` bytes."""
        os.ftruncate(fd, size)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name. A file at `new` is replaced; a folder only if it is empty."""
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name. Nothing is replaced: FileExistsError."""
        os.link(old, new, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make a folder."""
        os.mkdir(path)

    def rmtree(self, path: Path) -> None:
        """Remove a folder and all in it, as far as that goes."""
        shutil.rmtree(path, ignore_errors=True)

    def sync_directory(self, path: Path) -> None:
        """Sync the names in a folder."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


disk = Disk()


# -- failpoints


@dataclass
class Failpoint:
    """The failpoint that is armed, if any."""

    name: str = ""
    left: int = 0  # times that it is yet to be reached
    action: str = "kill"


armed_failpoint = Failpoint()


def arm_failpoint(spec: str) -> None:
    """Arm the failpoint of a text name:count:action; '' disarms it. ValueError: there is no such point or action."""
    name, count, action = spec.split(":") if spec else ("", "0", "kill")
    if (spec and name not in FAILPOINTS) or not (action == "kill" or action in vars(errno)):
        raise ValueError(f"ZOEDGE_FAILPOINT: {spec!r} is not name:count:action with a name of {', '.join(FAILPOINTS)}")
    armed_failpoint.name, armed_failpoint.left, armed_failpoint.action = name, int(count), action


arm_failpoint(os.environ.get("ZOEDGE_FAILPOINT", ""))


def reach_failpoint(name: str) -> None:
    """Kill the process or raise OSError, as the armed failpoint says, if this is the one, reached often enough."""
    if name == armed_failpoint.name:
        armed_failpoint.left -= 1
        if armed_failpoint.left == 0:
            if armed_failpoint.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(vars(errno)[armed_failpoint.action], f"injected {armed_failpoint.action}")


# -- files


def write_all(fd: int, data: bytes, middle: str) -> None:
    """Write all of `data`. middle: the failpoint halfway; only if it is armed, the data is written in two parts."""
    half = len(data) // 2 if middle == armed_failpoint.name else 0
    for part in (data[:half], data[half:]):
        view = memoryview(part)
        while view:
            if not (written := disk.write(fd, view)):
                raise OSError(errno.EIO, "a write made no progress")
            view = view[written:]
        if half:
            reach_failpoint(middle)
            half = 0


def publish_file(
    path: Path, data: bytes | Iterable[bytes], replace: bool = True, ready: Callable[[int], None] = lambda fd: None
) -> int:
    """Write all of `data` at `path`, durably, or nothing, and return the open descriptor.

    Args:
        data: bytes, or pieces of them.
        replace: whether a file that is there is replaced; if not, FileExistsError.
        ready: called with the descriptor before anything is written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")  # not the pid: in a container it repeats
    fd = disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        ready(fd)
        for piece in (data,) if isinstance(data, bytes) else data:
            write_all(fd, piece, "file.mid")
        disk.sync(fd)
        if replace:
            disk.rename(temporary, path)
        else:
            rename_exclusive(temporary, path)
        disk.sync_directory(path.parent)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            disk.unlink(temporary)
        raise
    return fd


def rename_exclusive(old: Path, new: Path) -> None:
    """Rename a file; FileExistsError: there is one at `new`.

    It is atomic by a second name, where the file system has such names (FAT has not).
    """
    try:
        disk.link(old, new)
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        disk.rename(old, new)
    else:
        disk.unlink(old)


def write_new_text(path: Path, text: str) -> None:
    """Write a text to a file that is not there yet. UsageError: it is there, or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already; name another file.") from None
    except OSError as e:
        raise UsageError(f"{path}: cannot write: {e.strerror}.") from None


def write_durably(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write all of `data`, bytes or pieces of them, at `path`, or leave there what was there before. StorageError: it fails."""
    try:
        os.close(publish_file(path, data))
    except OSError as e:
        raise StorageError(f"{path}: cannot write: {e.strerror}.") from e


NETWORK_FILESYSTEMS = {
    "nfs",
    "nfs3",
    "nfs4",
    "cifs",
    "smb",
    "smb2",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "afpfs",
    "ceph",
    "lustre",
    "beegfs",
    "gpfs",
    "davfs",
    "webdav",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.ceph-fuse",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.rclone",
}


def network_filesystem(path: Path) -> str:
    """Return the type of the file system that holds `path`, such as nfs4, if other hosts may write there too; else ''.

    flock(2): over NFS and SMB a lock may hold on this host alone (`local_lock`, `nobrl`).
    """
    import psutil

    place = os.path.realpath(path)
    # of two file systems on one mount point, the later one is on top
    kinds = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    below = [p for p in kinds if (place + os.sep).startswith(p.rstrip(os.sep) + os.sep)]
    kind = kinds[max(below, key=len)] if below else ""
    return kind if kind in NETWORK_FILESYSTEMS else ""


# -- folders


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft beside `folder`, which takes its place if the block succeeds.

    Whatever happens, `folder` is the new one whole, the former one, or absent. StorageError: the disk refuses.
    """
    draft, former = (folder.with_name(f".{folder.name}.{what}-{os.getpid()}") for what in ("tmp", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, "tmp")
        disk.mkdir(draft)
        reach_failpoint("export.begin")
    except OSError as e:
        raise StorageError(f"{folder}: cannot write there: {e.strerror}. Name another folder.") from e
    try:
        yield draft
        try:
            if folder.exists():
                disk.rmtree(former)  # left by a process that was stopped after its swap: in a container, pids repeat
                disk.rename(folder, former)
            try:
                reach_failpoint("export.swap")
                disk.rename(draft, folder)
            except OSError:
                if former.exists():
                    disk.rename(former, folder)
                raise
            reach_failpoint("export.end")
            disk.sync_directory(folder.parent)
        except OSError as e:
            raise StorageError(f"{folder}: cannot put the export in its place: {e.strerror}.") from e
        remove_leftovers(folder, "old")
    finally:
        disk.rmtree(draft)


def remove_leftovers(folder: Path, what: str) -> None:
    """Remove what this process, or one that died, left beside `folder`."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.{what}-([0-9]{{1,9}})")
    for path in folder.parent.iterdir():
        if (leftover := pattern.fullmatch(path.name)) and path.is_dir() and not path.is_symlink():
            if (pid := int(leftover[1])) != os.getpid():
                try:
                    os.kill(pid, 0)
                    continue
                except ProcessLookupError:
                    pass
                except PermissionError:
                    continue
            disk.rmtree(path)


def open_file(path: Path, mode: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file; a pipe does not make us wait.

    StorageError: it is a symlink or no regular file, or cannot be opened.
    """
    try:
        fd = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as e:
        raise StorageError(f"{path}: cannot open the log: {e.strerror}.") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StorageError(f"{path}: cannot open the log: not a regular file.")
    return fd


def read_piece(path: Path, at: int, size: int) -> bytes:
    """Return `size` bytes of a regular file from `at` on, or fewer at its end. StorageError: as of `open_file`."""
    fd = open_file(path)
    try:
        return os.pread(fd, size, at)
    finally:
        os.close(fd)
