"""Watchdog: ends a hung run and names the ranks that block it.

A collective waits for every process. If one process is stuck, the others would wait until torch's own time-out, and
then they would not know which one is stuck. With NCCL, they are inside a call that a Python exception can't interrupt.
Therefore a thread in each process watches the training loop. It ends the process if the loop makes no progress for too
long, if another process of the run failed, or if a process of this node died. The threads communicate through the
store of the rendezvous, not through collectives.
"""

import contextlib
import json
import threading
import time

from moco.engine.checkpoint_background_writer import THREAD
from moco.engine.preemption import Stopped, end_at_once
from moco.pipe_safe_print import say

LOOK = 2.0  # seconds between two checks
GRACE = 4.0  # seconds to wait for an answer, or for a process to end by itself
WRITE = 60.0  # seconds that an ending process waits for a checkpoint that is being written
KEEPER = "the process that hosts the rendezvous store (rank 0, or the agent of torchrun)"
DATA, STEP, AHEAD, REPORT = range(4)  # phases of a step
PHASES = ("waiting for data", "computing", "waiting for the next batch", "logging or saving")

_current = None  # this process's Watchdog


def at(epoch, step, phase):
    """Tells this process's watchdog, if there is one, how far the training loop has come. It costs almost nothing.

    Args:
        epoch, step: 0-based numbers that grow in the same way on all ranks. phase: DATA, STEP, AHEAD or REPORT.
    """
    if _current is not None:
        _current.place, _current.moved = (epoch, step, phase), time.monotonic()


def in_words(place):
    """A place (epoch, step, phase) in words; None means before the first step."""
    if place is None:
        return "at the start"
    epoch, step, phase = place
    return f"epoch {epoch}, step {step}, {PHASES[phase]}"


class Watchdog:
    """A context manager that watches the training loop of this process.

    Args:
        store: a torch.distributed store that all ranks share.
        rank: global rank of this process. world: number of processes.
        timeout: seconds within which the training loop must make progress.
        lost: a c_byte that all processes of this node share; not 0 if one of them died. None without a launcher.
    """

    def __init__(self, store, rank, world, timeout, lost=None):
        self.store = store.clone()  # since the main thread may block the original in a long call
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
            with contextlib.suppress(RuntimeError, TimeoutError):  # perhaps no other process is left
                self._alarm(f"rank {self.rank} failed")

    def _watch(self):
        while not self.stop.wait(LOOK):
            try:
                self._look()
            except RuntimeError:
                self._end(f"{KEEPER} has ended")
            except TimeoutError:  # no reason to end anything as long as this rank makes progress
                if self._is_late():
                    say(f"error: no step ended within --timeout {self.timeout:g} s; {KEEPER} does not respond", True)
                    self._end()

    def _look(self):
        if self.lost is not None and self.lost.value:
            self._end(tell=f"another process on the node of rank {self.rank} died")
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
        """Returns `function(*args)`, which uses the store; raises TimeoutError if that takes longer than GRACE.

        If the store's process is frozen, a call to the store never returns.
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
        """Tells the other ranks why this one ends, unless a rank has done so before."""

        def tell():
            if self.store.add("alarms", 1) == 1:
                self.store.set("alarm", reason)

        self._in_time(tell)

    def _answer(self):
        self.store.set(f"place/{self.rank}", json.dumps(self.place))

    def _ask(self):
        """Prints which ranks are behind; only the first rank that gets here prints."""
        if self._in_time(self.store.add, "asking", 1) > 1:
            return
        keys, deadline = [f"place/{r}" for r in range(self.world)], time.monotonic() + GRACE
        while time.monotonic() < deadline and not self._in_time(self.store.check, keys):
            time.sleep(LOOK / 10)
        answered = [r for r, key in enumerate(keys) if self._in_time(self.store.check, [key])]
        places = {r: json.loads(self._in_time(self.store.get, keys[r])) for r in answered}
        say(verdict(places, self.world, self.timeout), True)

    def _end(self, reason="", tell=""):
        """Ends this process, unless it ends by itself within a grace period. Sends `tell` to the other ranks first."""
        if tell:
            with contextlib.suppress(RuntimeError, TimeoutError):
                self._alarm(tell)
        # Rank 0 waits longer, since it keeps the store that the others still read.
        if self.stop.wait(3 * GRACE if self.rank == 0 else GRACE):
            return
        if reason:
            say(f"rank {self.rank}: {reason}; this process ends too", True)
        for thread in threading.enumerate():
            if thread.name == THREAD:
                thread.join(WRITE)
        end_at_once(1)


def verdict(places, world, timeout):
    """The error message that names the ranks which did not arrive.

    Args:
        places: for each rank that answered, its place (epoch, step, phase) or None. world: number of ranks.
        timeout: in seconds.
    """
    silent = [r for r in range(world) if r not in places]
    furthest = max((tuple(place or ()) for place in places.values()), default=())
    behind = [r for r, place in places.items() if tuple(place or ()) < furthest]
    waits = f"no step ended within --timeout {timeout:g} s"
    late = [f"rank {r} ({in_words(places[r])})" for r in behind] + [f"rank {r} (no answer)" for r in silent]
    if late:
        arrived = in_words(furthest or None)
        return f"error: {waits}; {', '.join(late)} did not arrive; all other ranks ({arrived}) wait for that"
    return (
        f"error: {waits}; all ranks are at the same point ({in_words(furthest or None)}), so the loading of data, a "
        "device or the network is stuck; if a step really takes so long, give a longer --timeout"
    )
