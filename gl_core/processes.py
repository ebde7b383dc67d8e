"""Child processes that do not outlive their parent, whatever ends it."""

import ctypes
import os
import signal
import sys
import threading
import time

__all__ = ["die_with_parent", "kernel"]

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Make sure that this process ends when its parent, the process of that number, does; at once if it has ended already.

    On Linux the kernel sees to it, with SIGKILL; elsewhere a thread looks every second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def kernel() -> None:
    """The program of a chapter's kernel: IPython's own, in a process that dies with the one that started it."""
    die_with_parent(int(os.environ["JPY_PARENT_PID"]))
    # As IPython does it: no file of the working directory may stand in for one of its own modules.
    sys.path[:] = [folder for folder in sys.path if folder]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
