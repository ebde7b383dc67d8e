"""Child processes that do not outlive their parent, whatever ends it."""

import ctypes
import os
import signal
import sys
import threading
import time

__all__ = ["MEMORY", "die_with_parent", "kernel"]

# What glibc is told in a process that trains: to keep the memory of one step for the next. Otherwise it returns some of
# it to the system each time (under Dask, which asks for that, all of it), and training on a CPU is up to 1.7 times
# slower. Larger pieces, such as a whole data set, are still returned. Other C libraries do not read this.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(256 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let this process end when its parent, the process of that number, does; at once if it has ended already.

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
