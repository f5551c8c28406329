"""Counter-based randomness: every random draw is a function of (seed, epoch, image index) or (seed, step).

No draw depends on how many draws came before it. Therefore the number of data workers changes nothing, and a resumed
run needs no saved generator state to repeat what the uninterrupted run would have drawn.
"""

import numpy as np

# The first number of a generator's key. It keeps draws for different purposes independent at equal addresses.
SHUFFLE, ORDER, VIEWS, SUBSTITUTES = 1, 2, 3, 4


def generator(purpose, seed, *address):
    """A numpy Generator for this purpose (one of the constants above), seed and address, all non-negative integers."""
    return np.random.default_rng((purpose, seed, *address))
