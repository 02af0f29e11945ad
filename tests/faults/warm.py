"""Children of a process that has imported everything already: real processes, that die real deaths, in milliseconds."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def fork(function: Callable[[], object], errors: str | None = None) -> int:
    """Start *function* in a child; its pid. The child's exit status: 0, what ``sys.exit`` said, or 1 after an error.

    Its standard error, and an error's traceback, go to the file *errors*.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if errors:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        function()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int) -> int:
    """The child's exit status; minus the signal's number where one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
