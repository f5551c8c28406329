"""Counter-based randomness: every random draw is a function of (seed, epoch, image index) or (seed, step).

No draw depends on how many draws came before it. Therefore the number of data workers changes nothing, and a resumed
run needs no saved generator state to repeat what the uninterrupted run would have drawn.
"""

import numpy as np

# The first number of a generator's key. Draws for different purposes are independent, also at the same address.
SHUFFLE, ORDER, VIEWS, SUBSTITUTES = 1, 2, 3, 4


def generator(purpose, seed, *address):
    """A numpy Generator for a purpose (one of the constants above), a seed and an address.

    The address is one or more integers, such as (epoch, image index) or (step). All are non-negative integers.
    """
    numbers = (purpose, seed, *address)
    if max(numbers) < 2**32:  # then it is in the form to which numpy converts it, which halves the time
        numbers = np.array(numbers, np.uint32)
    return np.random.default_rng(numbers)
