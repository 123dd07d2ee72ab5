"""The server follows what is published: a new release is loaded beside the old one and takes its place.

A question belongs to the release that was current when it was understood (`served.Ask`), and is answered by it, so no
answer mixes two and none is lost. The old one leaves memory with its last answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from sidr_core.errors import SidrError
from sidr_core.serving.release import Place
from sidr_core.serving.served import Served


class Follower:
    """Holds the release that is served, and looks for another one now and then.

    Args:
        look: where the release lies that should be served. load: makes it ready.
        say: told of a swap or of a failure, which leaves the old release in place.
        seconds: between two looks; 0: never look.
    """

    def __init__(
        self, look: Callable[[], Place], load: Callable[[Place], Served], say: Callable[[str], object], seconds: float
    ) -> None:
        self._look, self._load, self._say, self._seconds = look, load, say, seconds
        self.served = load(look())
        self.swaps = self.failures = 0
        self._failed = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        if self._seconds:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._seconds):
            self.check()

    def check(self) -> None:
        """Look once, and swap if something else should be served. A failure is told once."""
        try:
            place = self._look()
            if place == self.served.release.place:
                return
            self.served = self._load(place)
        except Exception as error:
            self.failures += 1
            if str(error) != self._failed:
                kept = self.served.release.place
                text = str(error) if isinstance(error, SidrError) else f"{type(error).__name__}: {error}"
                self._say(f"snapshot {kept.snapshot}, lists {kept.fingerprint[:8]}, is served on: {text}")
            self._failed = str(error)
            return
        self._failed, self.swaps = "", self.swaps + 1
        self._say(f"now serving snapshot {place.snapshot}, lists {place.fingerprint[:8]}")
