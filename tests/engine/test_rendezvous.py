"""The rendezvous: processes that find each other, and what is said if one does not arrive."""

import socket
import threading

import pytest

from moco.engine.rendezvous import RendezvousError, rendezvous


def arrive(url, ranks, timeout=0.5):
    """What each of `ranks`, a dict of ranks to their worlds, gets: a store or a message."""
    results = {}

    def come(rank, world):
        try:
            results[rank] = rendezvous(url, rank, world, timeout)
        except RendezvousError as error:
            results[rank] = str(error)

    threads = [threading.Thread(target=come, args=item) for item in ranks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_those_who_met_share_a_store(tmp_path):
    stores = arrive(f"file://{tmp_path}/m", {0: 3, 1: 3, 2: 3}, timeout=30)
    stores[1].set("word", "of 1")
    assert stores[0].get("word") == stores[2].get("word") == b"of 1"


def test_a_place_that_was_used_before_holds_nothing_of_it(tmp_path):
    """As that of torchrun is when it has restarted the processes, or a file after a crash."""
    url = f"file://{tmp_path}/m"
    arrive(url, {1: 3}, timeout=0.2)  # which waits in vain for the others
    before = arrive(url, {0: 2, 1: 2}, timeout=30)
    before[0].set("alarm", "rank 1 failed")
    stores = arrive(url, {0: 2, 1: 2}, timeout=30)
    assert not stores[0].check(["alarm"]) and not stores[1].check(["alarm"])
    stores[1].set("word", "of 1")
    assert stores[0].get("word") == b"of 1"


def test_who_did_not_come_is_named(tmp_path):
    url = f"file://{tmp_path}/m"
    results = arrive(url, {0: 4, 2: 4})
    message = f"rank 1, 3 of 4 processes did not arrive at {url} within --timeout 0.5 s; is every node started"
    assert all(result.startswith(message) for result in results.values())


@pytest.mark.parametrize("url", ["file://{}/m", "tcp://localhost:1"])
def test_a_missing_rank_0_is_named(url, tmp_path):
    (result,) = arrive(url.format(tmp_path), {1: 2}, timeout=0.2).values()
    assert result.startswith(f"rank 0 did not arrive at {url.format(tmp_path)} within --timeout 0.2 s")


def test_a_place_that_can_not_be_opened_is_rank_0s_trouble(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        url = f"tcp://localhost:{taken.getsockname()[1]}"
        (result,) = arrive(url, {0: 2}).values()
    assert result.startswith(f"rank 0 can't open {url} for the others: ") and "give another --dist-url" in result


def test_nodes_with_different_numbers_of_processes_say_so(tmp_path):
    results = arrive(f"file://{tmp_path}/m", {0: 2, 3: 6})
    assert "this process expects 6 processes in all, but rank 0 expects 2" in results[3]
