"""Batches drawn ahead in a thread, so that the device does not wait for images to be decoded and noise to be drawn.

What a step sees is a function of the step alone; drawing ahead changes neither content nor order.
"""

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType

from torch import Tensor
from typing_extensions import Self

Batch = tuple[Tensor, ...]


class Prefetch:
    """Draws the batches of `steps`, at most `ahead` before they are taken; a context manager, whose thread ends with it.

    Attributes:
        waited: seconds that `take` stood waiting.
    """

    def __init__(self, draw: Callable[[int], Batch], steps: range, *, ahead: int = 3, pin: bool = False) -> None:
        self._draw, self._steps, self._pin = draw, steps, pin
        self._drawn: queue.Queue[Batch | BaseException] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self.waited = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()

    def take(self) -> Batch:
        """The next step's batch. What went wrong where it was drawn is raised here."""
        began = time.perf_counter()
        batch = self._drawn.get()
        self.waited += time.perf_counter() - began
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def _run(self) -> None:
        try:
            for step in self._steps:
                batch = self._draw(step)
                if not self._put(tuple(value.pin_memory() for value in batch) if self._pin else batch):
                    return
        except BaseException as error:  # of any kind: whoever takes the batch is to hear of it
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        """Wait for a free place; False where nobody takes batches any more."""
        while not self._stopped.is_set():
            try:
                self._drawn.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
