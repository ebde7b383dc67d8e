"""A process that stays ready, so that a second search does not wait for PyTorch to be loaded.

Loading PyTorch takes seconds, a search in an index of ten thousand images a fraction of one. So the first `glbook search` leaves a
process behind that has loaded everything and waits. A later one hands it its command line, folder, environment and its three open
files; a fork of the waiting process carries the command out as if it had been started there, and leaves nothing behind. Nothing
about a search is kept: the index lies on the disk, and each fork reads it anew.

The process ends when nobody has asked for ten minutes. `GLBOOK_RESIDENT` sets these minutes; 0 means that there is none, nor is
there one where forking a process that has loaded much is not safe, which is everywhere but on Linux. Whatever goes wrong with it,
the command is carried out without.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ask", "serve", "start"]

PACKAGE = Path(__file__).resolve().parent
MINUTES = "GLBOOK_RESIDENT"
# Read when the libraries are loaded: a process that has them otherwise is another one.
READ_EARLY = ("OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "KMP_", "CUDA_", "LD_", "PYTHON")
# As it is before libraries are loaded, some of which write into it.
ENVIRONMENT = dict(os.environ)


def ask(line: Sequence[str]) -> int | None:
    """Have the waiting process carry out a command line of `glbook`; the exit status, or None if there is no such process."""
    path = _socket() if _minutes() else None
    if path is None:
        return None
    umask = os.umask(0o077)
    os.umask(umask)
    request = {"line": list(line), "folder": os.getcwd(), "environment": dict(os.environ), "umask": umask}
    message = json.dumps(request).encode()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            # Standard input, output and errors go along.
            socket.send_fds(connection, [struct.pack("!I", len(message))], [0, 1, 2])
            connection.sendall(message)
            status = connection.recv(1)
    except OSError:
        return None
    return status[0] if status else None


def start() -> None:
    """Leave a process behind that waits for `ask`, unless there is one or it is not wanted."""
    if _minutes():
        with contextlib.suppress(OSError):
            subprocess.Popen(
                [sys.executable, "-m", "gl_core.resident"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd=PACKAGE.parent, env=ENVIRONMENT, start_new_session=True,
            )  # fmt: skip


def serve() -> None:
    """The program of the process that waits. It ends at once if another one waits at the same place."""
    import fcntl

    path = _socket()
    if path is None:
        return
    with open(path.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `glbook` has it
        _load()
        # Ended children are not waited for.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with socket.socket(socket.AF_UNIX) as listener:
            # What a process that was killed has left.
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(60 * _minutes())
            try:
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        if not _fork():
                            listener.close()
                            _carry_out(connection, lock.fileno())
            except TimeoutError:
                pass
            finally:
                path.unlink(missing_ok=True)


def _minutes() -> float:
    """How long to wait for somebody to ask; 0 if there is to be no such process."""
    if sys.platform != "linux":
        return 0.0
    try:
        return max(0.0, float(os.environ.get(MINUTES, "10")))
    except ValueError:
        raise ValueError(f"{MINUTES}={os.environ[MINUTES]!r}: must be a number of minutes, 0 for none") from None


def _socket() -> Path | None:
    """Where the process is asked, in a folder that only this user can enter; None if there is no such folder.

    Another place for another Python, another version of the library or of PyTorch, and other settings of theirs.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"glbook-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return None
        code = sorted((str(path), path.stat().st_mtime_ns) for path in PACKAGE.rglob("*.py"))
    except OSError:
        return None
    torch = importlib.util.find_spec("torch")
    early = sorted(item for item in os.environ.items() if item[0].startswith(READ_EARLY))
    parts = [sys.executable, code, torch and torch.origin and os.stat(torch.origin).st_mtime_ns, early]
    path = folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.socket"
    return path if len(os.fsencode(path)) < 100 else None  # the system's limit


def _load() -> None:
    """What a search needs. No computation: threads that have begun to work do not survive a fork."""
    from gl_core import checkpoints, devices, gallery, photos  # noqa: F401


def _fork() -> int:
    with warnings.catch_warnings():
        # The threads that Python warns of are those of OpenBLAS, which ends them before a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _carry_out(connection: socket.socket, lock: int) -> None:
    """In a fork: do what is asked, tell the exit status, end."""
    status = 1
    try:
        os.close(lock)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        head, files, _, _ = socket.recv_fds(connection, 4, 3)
        message = bytearray()
        while len(message) < struct.unpack("!I", head)[0]:
            if not (part := connection.recv(1 << 16)):
                return
            message += part
        request = json.loads(message)
        for number, file in enumerate(files):
            os.dup2(file, number)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        os.chdir(request["folder"])
        os.umask(request["umask"])
        os.environ.clear()
        # The fork is the process that was asked for: it asks no other.
        os.environ.update(request["environment"] | {MINUTES: "0"})
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()

        from gl_core.cli import main

        status = main(request["line"])
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status]))
    finally:
        os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """Who has asked has gone, by Ctrl-C for instance."""
    if not connection.recv(1):
        os._exit(1)


if __name__ == "__main__":
    serve()
