"""A lease on a folder: one writer at a time, on any host that sees it, and none that has died keeps it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from espnet3.config.alive import process_start
from espnet3.errors import UserError
from espnet3.io import read_json, write_json

log = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds without a sign of life, after which a writer on another host counts as dead."""


class LeaseLost(RuntimeError):
    """Another process has taken the folder: this one must not write any more."""


class Lease:
    """``lease.json`` in *folder* names its writer (host, pid, the process's start) and counts its heartbeats.

    A holder on this host is dead when its process is gone; one on another host when its heartbeat stands still for
    `stale` seconds of this host's clock (clocks of hosts are not compared). A living one on this host is given `patience`
    seconds to end: it may be saving its state.

    Raises:
        UserError: on entering, when a living process holds the folder.
    """

    def __init__(
        self, folder: str | os.PathLike, heartbeat: float = HEARTBEAT, stale: float = STALE, patience: float = 0.0
    ):
        self.path = Path(folder) / "lease.json"
        self.heartbeat = heartbeat
        self.stale = stale
        self.patience = patience
        self.own = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "id": uuid.uuid4().hex,
        }
        self._beats = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._take():
            self._await_death(self._holder())
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock():
            if self._is_own():
                self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises LeaseLost when the folder is no longer ours; call before every write."""
        if not self._is_own():
            raise LeaseLost(f"{self.path.parent}: another process has taken over this training; this one stops writing")

    def _take(self) -> bool:
        with self._lock():
            holder = self._holder()
            if holder is not None and not self._dead(holder):
                return False
            if holder is not None:
                log.info(
                    "taking over %s from a dead process (pid %s on %s)", self.path.parent, holder["pid"], holder["host"]
                )
            self._write()
            return True

    def _dead(self, holder: dict) -> bool:
        return holder["host"] == self.own["host"] and process_start(holder["pid"]) != holder["start"]

    def _await_death(self, holder: dict | None) -> None:
        """Return when *holder* has gone, has let go, or has shown no heartbeat for long; raise when it lives."""
        if holder is None:
            return
        name = f"process {holder['pid']} on {holder['host']}"
        refusal = f"{self.path.parent}: {name} is training here; wait for it, or stop it and run again"
        if holder["host"] == self.own["host"]:
            until = time.monotonic() + self.patience
            if self.patience:
                log.info("%s: waiting up to %.0f s for %s to end", self.path.parent, self.patience, name)
            while time.monotonic() < until and not self._dead(holder):
                time.sleep(0.1)
                now = self._holder()
                if now is None or now["id"] != holder["id"]:
                    return
            if self._dead(holder):
                return
            raise UserError(refusal)
        log.info("%s: waiting up to %.0f s to see whether %s is alive", self.path.parent, self.stale, name)
        until = time.monotonic() + self.stale
        while time.monotonic() < until:
            time.sleep(min(1.0, self.stale / 10))
            now = self._holder()
            if now is None or now["id"] != holder["id"]:
                return
            if now["beats"] != holder["beats"]:
                raise UserError(refusal)
        with self._lock():
            now = self._holder()
            if now is not None and now["id"] == holder["id"] and now["beats"] == holder["beats"]:
                log.info("%s: %s shows no sign of life; taking over", self.path.parent, name)
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            with contextlib.suppress(OSError), self._lock():
                if not self._is_own():
                    return
                self._beats += 1
                self._write()

    def _write(self) -> None:
        write_json(self.path, {**self.own, "beats": self._beats})

    def _holder(self) -> dict | None:
        try:
            holder = read_json(self.path)
        except (UserError, OSError):
            return None
        return holder if isinstance(holder, dict) and {"host", "pid", "start", "id", "beats"} <= holder.keys() else None

    def _is_own(self) -> bool:
        holder = self._holder()
        return holder is not None and holder["id"] == self.own["id"]

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.path.with_suffix(".lock"), "w") as handle:
            # Some network file systems have no locks: the re-check before each write is then what is left
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # a loader's process that was forked meanwhile holds the file, too: closing it here would free nothing
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_UN)
