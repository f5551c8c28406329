"""Where the processes of a run meet: torch.distributed's store, and a word on who did not come."""

import time
import uuid
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist

from moco.console import first_line


class MeetingError(RuntimeError):
    """Not all processes came; the message says which are missing."""


def meet(url, rank, world, timeout):
    """Waits until all processes are there; returns a store that they share with no one else.

    The place may have been used before: by an attempt that torchrun has restarted, or by a run that did not end well.
    So each process asks for this meeting's token under a name that nobody had before it, and rank 0 answers.

    Args:
        url: tcp://HOST:PORT, where rank 0 listens, file:///PATH, or env:// for torchrun's. timeout: in seconds.

    Raises:
        MeetingError: a rank did not come in time, or takes the run for another number of processes.
    """
    limit = timedelta(seconds=timeout)
    try:
        store = _store(url, rank, world, limit)
        store.set_timeout(limit)
        if rank > 0:
            mine = uuid.uuid4().hex
            store.set(f"request/{store.add('requests', 1)}", mine)
            token, theirs = store.get(f"answer/{mine}").decode().split()
    except RuntimeError as error:  # which a time-out of torch's stores is, too
        reason = first_line(error)
        if rank == 0:
            raise MeetingError(f"rank 0 can't open {url} for the others: {reason}; give another --dist-url") from error
        raise MeetingError(
            f"rank 0 did not arrive at {url} within --timeout {timeout:g} s; is it started, with the same --dist-url? "
            f"({reason})"
        ) from error
    if rank == 0:
        return _receive(store, url, world, timeout)
    if int(theirs) != world:
        raise MeetingError(
            f"this process takes the run for one of {world} processes, rank 0 for one of {theirs}; give every node "
            "the same --world-size and --nproc"
        )
    store = dist.PrefixStore(token, store)
    store.set(f"arrived/{rank}", "")
    try:
        store.wait(["complete"], limit)
    except RuntimeError as error:
        raise MeetingError(_missing(store, url, world, timeout)) from error
    return store


def _receive(place, url, world, timeout):
    """Rank 0's part of `meet`: answers every request, also those of processes that are gone."""
    token, seen, deadline = uuid.uuid4().hex, 0, time.monotonic() + timeout
    store = dist.PrefixStore(token, place)
    store.set("arrived/0", "")
    while not store.check([f"arrived/{r}" for r in range(world)]):
        if place.check([f"request/{seen + 1}"]):
            seen += 1
            place.set(f"answer/{place.get(f'request/{seen}').decode()}", f"{token} {world}")
        elif time.monotonic() > deadline:
            raise MeetingError(_missing(store, url, world, timeout))
        else:
            time.sleep(0.02)
    store.set("complete", "")
    return store


def _missing(store, url, world, timeout):
    missing = ", ".join(str(r) for r in range(world) if not store.check([f"arrived/{r}"]))
    return (
        f"of {world} processes rank {missing or '0'} did not arrive at {url} within --timeout {timeout:g} s; is every "
        "node started, with the same --dist-url?"
    )


def _store(url, rank, world, limit):
    """The store at `url`, without waiting for anyone but its keeper."""
    if url == "env://":
        store, *_ = next(dist.rendezvous(url, timeout=limit))  # whose agents have met already
        return store
    parts = urlsplit(url)
    if parts.scheme == "file":
        return dist.FileStore(parts.path, world)
    return dist.TCPStore(parts.hostname, parts.port, world, rank == 0, limit, wait_for_workers=False)
