"""A map in several processes that survives whatever kills one of them, such as a decoder that crashes."""

import contextlib
import multiprocessing
import os
import resource
import signal
from itertools import islice
from multiprocessing.connection import wait
from typing import NamedTuple

from moco.data.worker_processes import STOP_SIGNALS, stop_signals_held

CHUNK = 16  # numbers that a process gets at once


class Crash(NamedTuple):
    """The result for a number at which the process died.

    Attributes:
        exit_code: of the process; -N if signal N ended it.
    """

    exit_code: int


class _Worker(NamedTuple):
    process: multiprocessing.Process
    waiting: list  # the numbers whose results have not come yet


def crash_proof_map(function, n, processes, memory):
    """Yields `function(0)`, ..., `function(n - 1)` in this order, computed by forked processes.

    If a process dies, the result for its number is a Crash, and another process goes on. The standard error of the
    processes is dropped, since decoders write warnings to it.

    Args:
        processes: number of processes. memory: bytes that each process may use more than this one does.
    """
    chunks, workers, results = (list(range(n)[i : i + CHUNK]) for i in range(0, n, CHUNK)), {}, {}

    def start(numbers):
        connection, end = multiprocessing.Pipe()
        arguments = function, end, [connection, *workers], memory
        process = multiprocessing.get_context("fork").Process(target=_serve, args=arguments, daemon=True)
        with stop_signals_held():
            process.start()
        end.close()
        workers[connection] = _Worker(process, [])
        send(connection, numbers)

    def send(connection, numbers):
        workers[connection].waiting.extend(numbers)
        with contextlib.suppress(ConnectionError):  # the process has died, which `receive` will notice
            connection.send(numbers)

    def receive(connection):
        process, waiting = workers[connection]
        try:
            result, alive = connection.recv(), True
        except (EOFError, ConnectionError):
            process.join()
            result, alive = Crash(process.exitcode), False
        results[waiting.pop(0)] = result
        if alive and waiting:
            return
        numbers = waiting or next(chunks, None)
        if alive and numbers:
            send(connection, numbers)
            return
        del workers[connection]
        connection.close()  # which ends the process
        process.join()
        if numbers:
            start(numbers)

    try:
        for numbers in islice(chunks, processes):
            start(numbers)
        for i in range(n):
            while i not in results:
                for connection in wait(list(workers)):
                    receive(connection)
            yield results.pop(i)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.join()


def _serve(function, connection, others, memory):
    """Such a process. It ends when the parent closes the connection, or dies."""
    for number in STOP_SIGNALS:  # a scheduler signals every process of a job, but only the parent may end this one
        signal.signal(number, signal.SIG_IGN)
    for other in others:  # as long as any process has them open, the others can't see that the parent has died
        other.close()
    limit_memory(memory)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            for i in connection.recv():
                connection.send(function(i))


def limit_memory(more):
    """Limits the memory of this process to what it has now and `more` bytes, where the system can do that."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
