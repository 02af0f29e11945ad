"""Running records through ``forward``: batches, lone retries, quarantine, memory that runs out."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

from espnet3.io import FULL_DISK
from espnet3.parallel.attempts import Attempts

logger = logging.getLogger("espnet3.parallel")


def one_line(error: BaseException) -> str:
    """``ValueError: what was wrong``, for a list of failures."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether *error* says that memory ran out, on the host or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def free_memory() -> None:
    """Let go of what an error's traceback held, and of the GPU memory that torch keeps for later."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class RecordLoop:
    """Calls ``forward`` so that one bad record costs one record.

    Args:
        forward: takes an index, or a list of them where *batched*, and returns a result, or a list of as many.
        encode: applied to each result; its error is the record's too.
        batched: whether ``forward`` takes lists.
        name_of: a record's key, for messages.
    """

    def __init__(
        self,
        forward: Callable[[Any], Any],
        encode: Callable[[Any], Any],
        batched: bool,
        name_of: Callable[[int], str],
    ):
        self.forward, self.encode, self.batched, self.name_of = forward, encode, batched, name_of

    def run(self, batch: list[int]) -> tuple[list[tuple[int, Any]], list[dict]]:
        """A batch's results, in its order, and its failures.

        A batch that fails is run again record by record, and one that runs out of memory as two halves. A record that
        fails alone is returned as a failure. Errors that no other record would escape (a full disk, a wrong set-up)
        are raised.
        """
        if not self.batched:
            return self._alone(batch[0])
        try:
            return self._call(batch), []
        except Exception as error:
            self._raise_fatal(error)
            memory = out_of_memory(error)
            reason = one_line(error)
        # outside the handler, where the traceback no longer holds the batch's tensors
        if memory:
            free_memory()
        if len(batch) == 1:
            return self._alone(batch[0])
        if memory:
            logger.warning("out of memory with a batch of %d records; halving it", len(batch))
            middle = len(batch) // 2
            parts = [batch[:middle], batch[middle:]]
            outcomes = [self.run(part) for part in parts]
        else:
            logger.warning("a batch of %d records failed (%s); running each alone", len(batch), reason)
            outcomes = [self._alone(index) for index in batch]
        return [r for records, _ in outcomes for r in records], [f for _, failures in outcomes for f in failures]

    def run_carefully(self, batch: list[int], attempts: Attempts) -> tuple[list[tuple[int, Any]], list[dict]]:
        """The same for a batch in which processes have died: each record alone, and without those that are deadly."""
        records: list[tuple[int, Any]] = []
        failures: list[dict] = []
        for index in batch:
            if index in attempts.deadly:
                failures.append(self.failure(index, "its process died each time it was run", ""))
                continue
            attempts.at(index)
            good, bad = self._alone(index)
            records, failures = records + good, failures + bad
        return records, failures

    def failure(self, index: int, error: str, trace: str) -> dict:
        """A quarantined record, as it stands in the list of failures."""
        return {"index": index, "key": self.name_of(index), "error": error, "traceback": trace}

    def _call(self, batch: list[int]) -> list[tuple[int, Any]]:
        results = self.forward(list(batch))
        if not isinstance(results, (list, tuple)) or len(results) != len(batch):
            count = len(results) if hasattr(results, "__len__") else type(results).__name__
            raise ValueError(f"forward returned {count} for a batch of {len(batch)}; return one result an index")
        return [(index, self.encode(result)) for index, result in zip(batch, results, strict=True)]

    def _alone(self, index: int) -> tuple[list[tuple[int, Any]], list[dict]]:
        try:
            if self.batched:
                return self._call([index]), []
            return [(index, self.encode(self.forward(index)))], []
        except Exception as error:
            self._raise_fatal(error)
            failure = self.failure(index, one_line(error), traceback.format_exc())
            memory = out_of_memory(error)
        if memory:
            free_memory()
        return [], [failure]

    @staticmethod
    def _raise_fatal(error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise error
