"""Many strings in two arrays, which data workers can share without copying them."""

import os

import numpy as np


class StringArray:
    """Strings, such as paths, as one array of bytes and one of ends.

    With Python objects, each data worker would update reference counts, and thereby copy the memory that it shares
    with the others (PyTorch issue 13246).

    Args:
        data: uint8, the bytes of all strings, concatenated.
        ends: int64, length n + 1: 0, then the offset at which each string ends.
    """

    def __init__(self, data, ends):
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, strings):
        """Makes it of an iterable of strings."""
        data, ends = bytearray(), [0]
        for string in strings:
            data += os.fsencode(string)
            ends.append(len(data))
        return cls(np.frombuffer(bytes(data), dtype=np.uint8), np.array(ends, dtype=np.int64))

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index):
        return os.fsdecode(self.data[self.ends[index] : self.ends[index + 1]].tobytes())
