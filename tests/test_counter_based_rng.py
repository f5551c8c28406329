"""Random numbers of an address: the same to the bit in every version, so that old runs can be resumed."""

import numpy as np
import pytest

from moco.counter_based_rng import ORDER, SUBSTITUTES, VIEWS, generator


@pytest.mark.parametrize(
    "address", [(VIEWS, 0, 0, 0), (VIEWS, 3, 99, 1_281_166), (ORDER, 2**32 - 1, 5), (SUBSTITUTES, 2**32, 0, 7)]
)
@pytest.mark.parametrize("kind", [int, np.int64])
def test_numbers_are_those_of_numpy_for_the_whole_address(address, kind):
    ours, numpys = generator(*map(kind, address)), np.random.default_rng(address)
    assert np.array_equal(ours.random(200), numpys.random(200))
    assert np.array_equal(ours.permutation(50), numpys.permutation(50))


def test_the_numbers_never_change():
    assert generator(VIEWS, 7, 2, 40).random(3).tolist() == [
        0.8327751471913984,
        0.43675434208190567,
        0.5052882836583881,
    ]
