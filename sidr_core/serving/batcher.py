"""Questions that wait are decoded together: one thread owns the models, and takes all that fit together at once.

A question waits at most for the batch that is being decoded; the more arrive meanwhile, the larger the next batch. So
throughput grows with load, and a lone question waits for nobody. Those who were answered together ask again one by one:
the first of them would be decoded alone, and all others after it. So after a batch the thread waits until half as many
are there again, but for a small part of the time that the batch took. The queue is bounded: what does not fit is
refused at once, with the seconds after which it is worth another try.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from sidr_core.errors import SidrError

if TYPE_CHECKING:
    from sidr_core.serving.served import Ask, Found

#: Weight of the newest batch in the mean of seconds per question; longest advice to a refused client, in seconds.
_NEWEST, _LONGEST_WAIT = 0.2, 60
#: Share of a batch's seconds that the next one waits for those who come back.
_PATIENCE = 0.2


class Busy(SidrError):
    """The queue is full. `retry_after`: seconds until it should have room."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(
            "too many questions are waiting",
            expected=f"fewer than {waiting} waiting questions",
            found=f"{waiting}",
            fix=f"ask again in {retry_after} s",
        )


class Closed(SidrError):
    """The server is being stopped."""

    def __init__(self) -> None:
        super().__init__(
            "the server is being stopped",
            expected="a running server",
            found="one that only answers what it has accepted",
            fix="ask again when it is started",
        )


class Watcher(Protocol):
    """What a batcher tells: the size of each batch, and how long its decoding took."""

    def __call__(self, rows: int, seconds: float, mode: str) -> None: ...


class Batcher:
    """A bounded queue and the thread that empties it.

    Args:
        batch_size: questions decoded at once, at most.
        most_waiting: length of the queue.
        watch: called after each batch.
    """

    def __init__(self, batch_size: int, most_waiting: int, watch: Watcher) -> None:
        self._batch_size, self._most_waiting, self._watch = batch_size, most_waiting, watch
        self._waiting: deque[tuple[Ask, Future[Found]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._seconds_each = 0.05
        self._rows, self._patient_until = 0, 0.0  # of the last batch
        self._thread = threading.Thread(target=self._work, name="decoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, ask: Ask) -> Future[Found]:
        """Put a question into the queue. A future that is cancelled while it waits is not decoded.

        Raises:
            Busy: the queue is full. Closed: the server is being stopped.
        """
        future: Future[Found] = Future()
        with self._wake:
            if self._closed:
                raise Closed
            if len(self._waiting) >= self._most_waiting:  # those that gave up make room
                self._waiting = deque(pair for pair in self._waiting if not pair[1].cancelled())
            if len(self._waiting) >= self._most_waiting:
                wait = math.ceil(self._seconds_each * len(self._waiting))
                raise Busy(self._most_waiting, min(max(wait, 1), _LONGEST_WAIT))
            self._waiting.append((ask, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Answer what was accepted, and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            asks = [ask for ask, _ in batch]
            self._settle(batch, lambda asks=asks: asks[0].served.find(asks))
            ended = time.monotonic()
            seconds = ended - started
            self._rows, self._patient_until = len(batch), ended + _PATIENCE * seconds
            self._seconds_each += _NEWEST * (seconds / len(batch) - self._seconds_each)
            self._watch(len(batch), seconds, asks[0].mode)
            del batch, asks  # or the last batch would keep a release that has been replaced in memory

    def _take(self) -> list[tuple[Ask, Future[Found]]]:
        """The longest waiting question and those that fit it; waits for one. Empty once closed and done."""
        with self._wake:
            while True:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                self._wake.wait_for(
                    lambda: self._closed or 2 * len(self._waiting) >= self._rows,
                    max(0.0, self._patient_until - time.monotonic()),
                )
                group, batch, rest = self._waiting[0][0].group, [], deque()
                for ask, future in self._waiting:
                    if len(batch) == self._batch_size or ask.group != group:
                        rest.append((ask, future))
                    elif future.set_running_or_notify_cancel():
                        batch.append((ask, future))
                self._waiting = rest
                if batch:
                    return batch

    @staticmethod
    def _settle(batch: list[tuple[Ask, Future[Found]]], find: Callable[[], list[Found]]) -> None:
        """Give each future its result; a failure goes to all of the batch, and the thread lives on."""
        try:
            results = find()
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
