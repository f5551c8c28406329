"""Randomness that is addressed, not consumed.

Everything random in a run is a function of the seed and of an address (epoch and image, or step), never of how
many draws came before. So nothing depends on the number of workers, and no generator state needs saving.
"""

import numpy as np

# What a stream is for; it keeps the streams of equal addresses apart.
SHUFFLE, ORDER, VIEWS, SUBSTITUTES = 1, 2, 3, 4


def generator(purpose, seed, *address):
    """numpy Generator for a purpose of the above, a seed and an address, all non-negative integers."""
    return np.random.default_rng((purpose, seed, *address))
