"""Watchdog: ends a hung run and names the ranks that block it.

A collective waits for every process. If one process is stuck, the others would wait until torch's own time-out, and
then they would not know which one is stuck. With NCCL, they are inside a call that a Python exception can't interrupt.
Code in C++ may even keep Python's global lock (GIL) while it waits for a GPU with a full queue, as torch's launcher of
compiled kernels does (static_cuda_launcher.cpp); then no thread of that process runs. Therefore each process of a run
forks a small process that watches its training loop.
It ends the run if the loop makes no progress for too long, if another process of the run failed, or if a process of
this node died. The watching processes communicate through the store of the rendezvous, not through collectives.
"""

import contextlib
import json
import mmap
import os
import signal
import threading
import time
import traceback

from moco.data.worker_processes import STOP_SIGNALS, stop_signals_held
from moco.engine.checkpoint_background_writer import THREAD
from moco.engine.preemption import Stopped, end_at_once
from moco.pipe_safe_print import say

LOOK = 2.0  # seconds between two looks at the loop and the store
ALIVE = 0.2  # seconds between two looks at the process that is watched
GRACE = 4.0  # seconds to wait for an answer, or for a process to end by itself
WRITE = 60.0  # seconds that an ending process waits for a checkpoint that is being written
KEEPER = "the process that hosts the rendezvous store (rank 0, or the agent of torchrun)"
STAGES = (
    "joining the others",
    "reading the checkpoint",
    "building the model",
    "comparing the models",
    "first warm-up pass, with --compile also compiling",
    "second warm-up pass",
    "starting the data workers",
)
DATA, STEP, AHEAD, REPORT = range(4)  # phases of a step
PHASES = ("waiting for data", "computing", "waiting for the next batch", "logging or saving")
PLACE, MOVED, ENDING = range(3)  # what the numbers in the shared memory say: see Watchdog.note
END, STAY = b"e", b"s"  # what the watching process asks for, and what ends the thread that waits for it

_current = None  # this process's Watchdog


def at(epoch, step, phase):
    """Tells this process's watchdog, if there is one, how far the training loop has come. It costs almost nothing.

    Args:
        epoch, step: 0-based numbers that grow in the same way on all ranks. phase: DATA, STEP, AHEAD or REPORT.
    """
    if _current is not None:
        _current.note(epoch, step, phase)


def at_start(stage):
    """As `at`, before the first epoch: `stage` is one of STAGES. Each stage may take as long as a step."""
    at(-1, STAGES.index(stage), 0)


def in_words(place, paused=False):
    """A place (epoch, step, phase) in words, and whether a signal has paused the process."""
    epoch, step, phase = place
    where = f"at the start, {STAGES[step]}" if epoch < 0 else f"epoch {epoch}, step {step}, {PHASES[phase]}"
    return f"{where}, paused by SIGSTOP" if paused else where


class Watchdog:
    """A context manager that watches the training loop of this process.

    Enter it before the process joins the process group, since it forks. The forked process uses no GPU.

    Args:
        store: a torch.distributed store that all ranks share.
        rank: global rank of this process. world: number of processes.
        timeout: seconds within which the training loop must make progress.
        lost: a c_byte that all processes of this node share; not 0 if one of them died. None without a launcher.
    """

    def __init__(self, store, rank, world, timeout, lost=None):
        self.store, self.watchers_store = store, store.clone()
        self.rank, self.world, self.timeout, self.lost = rank, world, timeout, lost
        self.shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")  # each number is written at once
        self.note(-1, 0, 0)
        self.talk = None

    def note(self, epoch, step, phase):
        """Writes the place of the training loop, as one number, and then the time into the shared memory."""
        self.shared[PLACE] = (epoch + 1 << 42) | (step << 2) | phase
        self.shared[MOVED] = time.monotonic_ns()

    def __enter__(self):
        global _current
        _current, self.watched = self, os.getpid()
        self.requests, self.request = os.pipe()
        with stop_signals_held():
            self.watcher = os.fork()
            if self.watcher == 0:
                self._watch()
        self.thread = threading.Thread(target=self._obey, name="watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        global _current
        _current = None
        os.kill(self.watcher, signal.SIGKILL)
        os.waitpid(self.watcher, 0)
        os.write(self.request, STAY)  # closing would not wake the thread, since data workers hold the pipe open
        self.thread.join()
        os.close(self.request)
        os.close(self.requests)
        if kind is not None and not issubclass(kind, Stopped):
            with contextlib.suppress(RuntimeError, TimeoutError):  # perhaps no other process is left
                self._alarm(f"rank {self.rank} failed")

    # In the process that is watched.

    def _obey(self):
        """Waits until the watching process asks this one to end, then ends it."""
        if os.read(self.requests, 1) == STAY:
            return
        self.shared[ENDING] = 1
        for thread in threading.enumerate():
            if thread.name == THREAD:
                thread.join(WRITE)
        end_at_once(1)

    # In the process that watches.

    def _watch(self):
        """The watching process; it never returns."""
        try:
            for number in STOP_SIGNALS:  # they also reach this process if they are sent to a whole job
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            self.store = self.watchers_store
            while self._lives(LOOK):
                try:
                    self._look()
                except RuntimeError:
                    self._end(f"{KEEPER} has ended")
                except TimeoutError:  # no reason to end anything as long as this rank makes progress
                    if self._is_late():
                        late = f"error: no step ended within --timeout {self.timeout:g} s"
                        say(f"{late}; {KEEPER} does not respond", True)
                        self._end()
        except Exception:
            say(f"warning: nobody watches rank {self.rank} any more: {traceback.format_exc()}", True)
        finally:
            os._exit(0)

    def _lives(self, seconds):
        """Waits so long, or until the watched process has ended; returns whether it still lives."""
        deadline = time.monotonic() + seconds
        while (lives := os.getppid() == self.watched) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(ALIVE, left))
        return lives

    def _place(self):
        """The place of the training loop: epoch, step and phase."""
        place = self.shared[PLACE]
        return (place >> 42) - 1, (place >> 2) & (1 << 40) - 1, place & 3

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
        return time.monotonic_ns() - self.shared[MOVED] > self.timeout * 1e9

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
        self.store.set(f"place/{self.rank}", json.dumps([self._place(), is_paused(self.watched)]))

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
        """Ends the watched process, unless it ends by itself within a grace period. Sends `tell` to the others first.

        This process ends, too.
        """
        if tell:
            with contextlib.suppress(RuntimeError, TimeoutError):
                self._alarm(tell)
        # Rank 0 gets more time, since it keeps the store that the others still read.
        if self._lives(3 * GRACE if self.rank == 0 else GRACE):
            if reason:
                say(f"rank {self.rank}: {reason}; this process ends too", True)
            os.write(self.request, END)
            if self._lives(GRACE) and (not self.shared[ENDING] or self._lives(WRITE + GRACE)):
                os.kill(self.watched, signal.SIGKILL)  # no thread of it runs, so it can't clean up
        os._exit(0)


def is_paused(pid):
    """Whether a signal has paused a process; False where the system does not tell, as macOS."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def verdict(places, world, timeout):
    """The error message that names the ranks which did not arrive.

    Args:
        places: for each rank that answered, its place (epoch, step, phase) and whether it is paused.
        world: number of ranks.
        timeout: in seconds.
    """
    silent = [r for r in range(world) if r not in places]
    furthest = max((tuple(place) for place, _ in places.values()), default=(-1, 0, 0))
    behind = [r for r, (place, paused) in places.items() if paused or tuple(place) < furthest]
    waits = f"no step ended within --timeout {timeout:g} s"
    late = [f"rank {r} ({in_words(*places[r])})" for r in behind] + [f"rank {r} (no answer)" for r in silent]
    if late:
        arrived = in_words(furthest)
        return f"error: {waits}; {', '.join(late)} did not arrive; all other ranks ({arrived}) wait for that"
    return (
        f"error: {waits}; all ranks are at the same point ({in_words(furthest)}), so the loading of data, a "
        "device or the network is stuck; if a step really takes so long, give a longer --timeout"
    )
