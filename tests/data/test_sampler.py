"""The order of the samples: contiguous shares of one global batch."""

import pytest

from moco.data import sampler
from moco.data.sampler import EpochBatchSampler


@pytest.fixture
def ranks(monkeypatch):
    """Sets the world that the sampler sees."""

    def set_ranks(rank, world):
        monkeypatch.setattr(sampler, "rank", lambda: rank)
        monkeypatch.setattr(sampler, "world_size", lambda: world)

    return set_ranks


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_take_contiguous_shares_of_one_global_batch(ranks, drop_last):
    ranks(0, 1)
    alone = list(EpochBatchSampler(103, 12, seed=5, drop_last=drop_last))
    assert len(alone) == (8 if drop_last else 9)
    seen = [index for batch in alone for _, index in batch]
    assert sorted(seen) == list(range(103)) if not drop_last else len(set(seen)) == 96
    for world in (2, 4):
        shares = []
        for rank in range(world):
            ranks(rank, world)
            shares.append(list(EpochBatchSampler(103, 12, seed=5, drop_last=drop_last)))
        for t, batch in enumerate(alone):
            joined = [address for share in shares for address in share[t]]
            assert len({len(share[t]) for share in shares}) == 1
            filled = alone[0][: len(joined) - len(batch)]  # only the last batch is filled up, from the first's start
            assert joined == batch + filled and len(filled) < world
            assert not filled or t == 8
