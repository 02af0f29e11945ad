"""Who lives: a working directory's runs of Snakemake, and the run that a job belongs to.

A run that is killed (SIGKILL, power, a closed terminal) cannot clean up. So a run is known by a lock that its kernel
takes back, and a job on the run's own machine ends itself when its run has gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "ESPNET3_RUN"
"""``<place> <pid> <start>`` of the Snakemake that a job belongs to."""
_held: list[int] = []


def process_start(pid: int) -> str | None:
    """When process *pid* of this host began (a pid may be used again); None: there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return "running"
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _place() -> str:
    """Where a process's number means the same: this host, and in a container this one."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{space}"


def enter_run(main: bool) -> None:
    """Note that this process is a run of Snakemake, for its jobs; a *main* one, also for later runs in this directory.

    The locks of Snakemake that a killed run has left are removed. They carry no process; here every run holds a shared lock
    of the kernel's, and who gets it alone knows that all the others have ended.
    """
    os.environ[VARIABLE] = f"{_place()} {os.getpid()} {process_start(os.getpid())}"
    if not main or _held:
        return
    # a file system without locks, or somebody else's folder: Snakemake's own locks are then what there is
    with contextlib.suppress(OSError):
        folder = Path(".snakemake")
        folder.mkdir(exist_ok=True)
        _held.append(os.open(folder / "espnet3.lock", os.O_RDWR | os.O_CREAT, 0o666))
        try:
            fcntl.flock(_held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            if list(folder.glob("locks/*.lock")):
                log.warning("espnet3: an earlier run of Snakemake was killed here; its lock is removed")
                shutil.rmtree(folder / "locks")
        fcntl.flock(_held[0], fcntl.LOCK_SH)


def end_with_run() -> None:
    """End this process, by a SIGTERM to itself, when the Snakemake that has started it, on this host, has gone."""
    fields = os.environ.get(VARIABLE, "").split()
    if len(fields) != 3 or fields[0] != _place():
        return
    threading.Thread(target=_watch, args=(int(fields[1]), fields[2]), name="run", daemon=True).start()


def _watch(pid: int, start: str) -> None:
    descriptor = None
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.pidfd_open(pid)
    if descriptor is not None and process_start(pid) == start:
        select.select([descriptor], [], [])
    while process_start(pid) == start:
        time.sleep(1)
    log.warning("the Snakemake that started this job (process %d) has ended: ending as well", pid)
    os.kill(os.getpid(), signal.SIGTERM)
