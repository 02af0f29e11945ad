"""What the benchmarks measure and print alike: CPU seconds, the memory that a process has had, a line for each bar."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_bars(bars: Sequence[tuple[str, float, float, bool]]) -> int:
    """A line for each ``(name, figure, target, whether the target is the least)``; 1 where one falls short, else 0."""
    short = 0
    for name, figure, target, least in bars:
        good = figure >= target if least else figure <= target
        short += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {figure:.4g}, target {'>=' if least else '<='} {target:g}")
    return int(short > 0)


def peak_megabytes() -> float:
    """The greatest resident size of this process; ``ru_maxrss`` would begin with that of the process that started it.

    Raises:
        RuntimeError: the system does not say it (it is not Linux).
    """
    status = Path("/proc/self/status")
    found = status.read_text().partition("VmHWM:")[2].split() if status.exists() else []
    if not found:
        raise RuntimeError(f"{status}: no VmHWM; this benchmark needs Linux")
    return int(found[0]) / 1024


def timed(function: Any) -> tuple[float, Any]:
    """CPU seconds, and the result; the garbage of what ran before is not on its bill."""
    gc.collect()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result
