"""What ends a run that no longer gets on, and says which processes the others wait for.

A collective waits for every process. If one of them is stuck, the others would wait for torch's own time-out, and then
not know for whom; with NCCL they would even sit in a call that no exception reaches. A thread of each process watches:
it ends the process when the training loop has not moved for so long, when another process of the run failed, or when
one of this node died. The processes find each other in the store at which their group met, not by collectives.
"""

import contextlib
import json
import threading
import time

from moco.console import say
from moco.interruption import Stopped, end_at_once
from moco.saver import THREAD

LOOK, GRACE = 2.0, 4.0  # seconds: between two looks around, and for an answer or an orderly end
WRITE = 60.0  # seconds that an ending process gives a checkpoint that is being written
KEEPER = "the process that keeps the run's store, rank 0 or torchrun's,"
DATA, STEP = 0, 1  # what a process is at, within a step

_current = None  # this process's Watchdog


def at(epoch, step, phase):
    """Tells the watchdog of this process, where there is one, how far it is. Costs next to nothing.

    Args:
        epoch, step: numbers that grow alike on all ranks. phase: DATA, waiting for data, or STEP.
    """
    if _current is not None:
        _current.place, _current.moved = (epoch, step, phase), time.monotonic()


def in_words(place):
    """A place as `at` takes it."""
    if place is None:
        return "at the start"
    epoch, step, phase = place
    return f"epoch {epoch}, step {step}, {'waiting for data' if phase == DATA else 'past its data'}"


class Watchdog:
    """A context manager; see above.

    Args:
        store: torch.distributed's, shared by all ranks. rank, world: of this process, and how many there are.
        timeout: seconds in which the training loop must move.
        lost: a c_byte that all processes of this node share, not 0 when one of them died, or None.
    """

    def __init__(self, store, rank, world, timeout, lost=None):
        self.store = store.clone()  # the main thread may wait for long in a call of its own
        self.rank, self.world, self.timeout, self.lost = rank, world, timeout, lost
        self.place, self.moved = None, time.monotonic()
        self.stop, self.talk = threading.Event(), None

    def __enter__(self):
        global _current
        _current = self
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        global _current
        _current = None
        self.stop.set()
        self.thread.join(GRACE)
        if kind is not None and not issubclass(kind, Stopped):
            with contextlib.suppress(RuntimeError, TimeoutError):  # there may be nobody to tell
                self._alarm(f"rank {self.rank} failed")

    def _watch(self):
        while not self.stop.wait(LOOK):
            try:
                self._look()
            except RuntimeError:
                self._end(f"{KEEPER} is gone")
            except TimeoutError:  # which ends nothing as long as this rank gets on
                if self._is_late():
                    say(f"error: no step ended within --timeout {self.timeout:g} s; {KEEPER} does not answer", True)
                    self._end()

    def _look(self):
        if self.lost is not None and self.lost.value:
            self._end(tell=f"a process beside rank {self.rank} died")
        elif self._in_time(self.store.check, ["alarm"]):
            self._in_time(self._answer)
            self._end(self._in_time(self.store.get, "alarm").decode())
        elif self._is_late():
            self._alarm("")
            self._in_time(self._answer)
            self._ask()
            self._end()

    def _is_late(self):
        return time.monotonic() - self.moved > self.timeout

    def _in_time(self, function, *args):
        """What `function(*args)` returns, which uses the store; TimeoutError where that takes longer than GRACE.

        A store whose keeper is frozen would have its callers wait for ever.
        """
        if self.talk is not None and self.talk.is_alive():
            raise TimeoutError
        results = []

        def call():
            try:
                results.append((function(*args), None))
            except RuntimeError as error:
                results.append((None, error))

        self.talk = threading.Thread(target=call, name="watchdog's store", daemon=True)
        self.talk.start()
        self.talk.join(GRACE)
        if not results:
            raise TimeoutError
        result, error = results[0]
        if error is not None:
            raise error
        return result

    def _alarm(self, reason):
        """Tells the other ranks, unless one has done so."""

        def tell():
            if self.store.add("alarms", 1) == 1:
                self.store.set("alarm", reason)

        self._in_time(tell)

    def _answer(self):
        self.store.set(f"place/{self.rank}", json.dumps(self.place))

    def _ask(self):
        """Says which ranks are behind, as the first of those that found out."""
        if self._in_time(self.store.add, "asking", 1) > 1:
            return
        keys, deadline = [f"place/{r}" for r in range(self.world)], time.monotonic() + GRACE
        while time.monotonic() < deadline and not self._in_time(self.store.check, keys):
            time.sleep(LOOK / 10)
        answered = [r for r, key in enumerate(keys) if self._in_time(self.store.check, [key])]
        places = {r: json.loads(self._in_time(self.store.get, keys[r])) for r in answered}
        say(verdict(places, self.world, self.timeout), True)

    def _end(self, reason="", tell=""):
        """Ends this process after a while in which it may end by itself. `tell` goes to the others."""
        if tell:
            with contextlib.suppress(RuntimeError, TimeoutError):
                self._alarm(tell)
        # Rank 0 keeps the store, which the others still read.
        if self.stop.wait(3 * GRACE if self.rank == 0 else GRACE):
            return
        if reason:
            say(f"rank {self.rank}: {reason}; this process ends too", True)
        for thread in threading.enumerate():
            if thread.name == THREAD:
                thread.join(WRITE)
        end_at_once(1)


def verdict(places, world, timeout):
    """The line that says who did not arrive.

    Args:
        places: dict of the ranks that answered to their places, as `at` takes them, or None. timeout: in seconds.
    """
    silent = [r for r in range(world) if r not in places]
    furthest = max((tuple(place or ()) for place in places.values()), default=())
    behind = [r for r, place in places.items() if tuple(place or ()) < furthest]
    waits = f"no step ended within --timeout {timeout:g} s"
    late = [f"rank {r} ({in_words(places[r])})" for r in behind] + [f"rank {r} (no answer)" for r in silent]
    if late:
        arrived = in_words(furthest or None)
        return f"error: {waits}; the others ({arrived}) wait for {', '.join(late)}, which did not arrive"
    return (
        f"error: {waits}; all ranks are {in_words(furthest or None)}, so that a device or the network is stuck, "
        "or a step takes longer than that: give a longer --timeout"
    )
