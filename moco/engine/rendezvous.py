"""Rendezvous: where the processes of a run find each other, and which ranks are missing if they do not."""

import time
import uuid
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist

from moco.pipe_safe_print import first_line


class RendezvousError(RuntimeError):
    """Not all processes arrived; the message says which are missing."""


def rendezvous(url, rank, world, timeout):
    """Waits until all processes have arrived; returns a torch.distributed store that only they share.

    The address may still hold data of an earlier run that crashed or that torchrun restarted. Therefore each process
    except rank 0 writes a request with a new random id, and rank 0 writes this run's token under that id.

    Args:
        url: tcp://HOST:PORT, where rank 0 listens; file:///PATH; or env://, the address that torchrun sets.
        rank: global rank of this process. world: number of processes. timeout: in seconds.

    Raises:
        RendezvousError: a rank did not arrive in time, or expects another number of processes.
    """
    limit = timedelta(seconds=timeout)
    try:
        store = _store(url, rank, world, limit)
        store.set_timeout(limit)
        if rank > 0:
            mine = uuid.uuid4().hex
            store.set(f"request/{store.add('requests', 1)}", mine)
            token, theirs = store.get(f"answer/{mine}").decode().split()
    except RuntimeError as error:  # a time-out of torch's stores is also a RuntimeError
        reason = first_line(error)
        if rank == 0:
            raise RendezvousError(
                f"rank 0 can't open {url} for the others: {reason}; give another --dist-url"
            ) from error
        raise RendezvousError(
            f"rank 0 did not arrive at {url} within --timeout {timeout:g} s; is it started, with the same --dist-url? "
            f"({reason})"
        ) from error
    if rank == 0:
        return _receive(store, url, world, timeout)
    if int(theirs) != world:
        raise RendezvousError(
            f"this process expects {world} processes in all, but rank 0 expects {theirs}; give every node the same "
            "--world-size and --nproc"
        )
    store = dist.PrefixStore(token, store)
    store.set(f"arrived/{rank}", "")
    try:
        store.wait(["complete"], limit)
    except RuntimeError as error:
        raise RendezvousError(_missing(store, url, world, timeout)) from error
    return store


def _receive(place, url, world, timeout):
    """Rank 0's part: answers every request, also those of processes that are gone."""
    token, seen, deadline = uuid.uuid4().hex, 0, time.monotonic() + timeout
    store = dist.PrefixStore(token, place)
    store.set("arrived/0", "")
    while not store.check([f"arrived/{r}" for r in range(world)]):
        if place.check([f"request/{seen + 1}"]):
            seen += 1
            place.set(f"answer/{place.get(f'request/{seen}').decode()}", f"{token} {world}")
        elif time.monotonic() > deadline:
            raise RendezvousError(_missing(store, url, world, timeout))
        else:
            time.sleep(0.02)
    store.set("complete", "")
    return store


def _missing(store, url, world, timeout):
    missing = ", ".join(str(r) for r in range(world) if not store.check([f"arrived/{r}"]))
    return (
        f"rank {missing or '0'} of {world} processes did not arrive at {url} within --timeout {timeout:g} s; is every "
        "node started, with the same --dist-url?"
    )


def _store(url, rank, world, limit):
    """The store at `url`; waits for nobody except the process that keeps it."""
    if url == "env://":
        store, *_ = next(dist.rendezvous(url, timeout=limit))  # torchrun's agents have met already
        return store
    parts = urlsplit(url)
    if parts.scheme == "file":
        return dist.FileStore(parts.path, world)
    return dist.TCPStore(parts.hostname, parts.port, world, rank == 0, limit, wait_for_workers=False)
