"""Stand-ins for CUDA's streams and events. Each has a vector clock, which says what has ended before it goes on."""

from collections import Counter


def active():
    """The FakeGPU that is active."""
    from tests.fake_gpu import FakeGPU  # which imports this file

    return FakeGPU.current


class Stream:
    """Stands for torch.cuda.Stream. Its clock holds, for each stream, how many of its operations must have ended."""

    def __init__(self, name):
        self.name, self.clock = name, Counter()

    def wait_stream(self, other):
        """Lets everything that follows here wait for everything so far on the other stream."""
        self.clock |= other.clock  # the maximum of both, entry by entry

    wait_event = wait_stream

    def record_event(self, event=None):
        """Records an event on this stream; returns it."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self):
        """Makes the host wait."""
        active().wait("Stream.synchronize")


class Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, **_):
        self.clock, self.stream = Counter(), None

    def record(self, stream=None):
        """Remembers the clock of a stream, of the current one by default."""
        self.stream = stream or active().stream
        self.clock = self.stream.clock.copy()

    def synchronize(self):
        """Makes the host wait."""
        active().wait("Event.synchronize")

    def query(self):
        """Whether everything before the event has ended; asking does not wait."""
        return True

    def elapsed_time(self, other):
        """Milliseconds until another event: here, the number of operations in between on that event's streams."""
        return float(sum((other.clock - self.clock).values()))
