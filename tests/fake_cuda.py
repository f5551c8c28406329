"""What a FakeGPU puts in the place of torch.cuda: streams and events with vector clocks, pinned memory, questions."""

import contextlib
from collections import Counter

import torch


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

    def __init__(self, enable_timing=False, **_):
        self.clock, self.stream = Counter(), None
        self.enable_timing, self.ended = enable_timing, False

    def record(self, stream=None):
        """Remembers the clock of a stream, of the current one by default."""
        self.stream = stream or active().stream
        self.clock = self.stream.clock.copy()

    def synchronize(self):
        """Makes the host wait."""
        active().wait("Event.synchronize")

    def query(self):
        """Whether everything before the event has ended; asking does not wait."""
        self.ended = True
        return True

    def elapsed_time(self, other):
        """Milliseconds until another event, which must have ended; here, the number of operations in between."""
        if not (self.enable_timing and other.enable_timing and other.ended):
            raise AssertionError("elapsed_time needs events with enable_timing, and `query` must say that they ended")
        return float(sum((other.clock - self.clock).values()))


def stand_ins(gpu):
    """What stands for the real thing within a FakeGPU; yields (object, name, value) for mock.patch.object."""
    from torch._subclasses import fake_tensor  # fake_gpu.py skips the tests where it is missing

    cuda = torch.cuda

    @contextlib.contextmanager
    def stream(side):
        before, gpu.stream = gpu.stream, side
        try:
            yield
        finally:
            gpu.stream = before

    def new_stream(*_, **__):
        gpu.sides.append(Stream(f"side {len(gpu.sides) + 1}"))
        return gpu.sides[-1]

    def pin_memory(x, *_):
        if gpu.key(x) in gpu.pinned:
            return x
        gpu.late_pins.append(tuple(x.shape))
        copy = x.clone()
        gpu.pin(copy)
        return copy

    def to_list(x):
        return (x.cpu() if x.device.type == "cuda" else x).numpy().tolist()

    yield cuda, "is_available", lambda: True
    yield cuda, "is_initialized", lambda: True
    yield cuda, "device_count", lambda: 1
    yield cuda, "current_device", lambda: 0
    yield cuda, "set_device", lambda _: None
    yield cuda, "_lazy_init", lambda: None
    yield cuda, "is_bf16_supported", lambda *_, **__: True
    yield cuda, "get_device_capability", lambda *_: (9, 0)
    yield cuda, "get_device_name", lambda *_: "a GPU of fake tensors"
    yield cuda, "Stream", new_stream
    yield cuda, "Event", Event
    yield cuda, "stream", stream
    yield cuda, "current_stream", lambda *_: gpu.stream
    yield cuda, "synchronize", lambda *_: gpu.wait("torch.cuda.synchronize")
    yield fake_tensor, "init_gpu_context", lambda _: None  # torch 2.11 would start the driver
    yield torch.Tensor, "pin_memory", pin_memory
    yield torch.Tensor, "is_pinned", lambda x, *_: gpu.key(x) in gpu.pinned
    yield torch.Tensor, "record_stream", lambda x, s: gpu.recorded.setdefault(gpu.key(x), set()).add(s.name)
    yield torch.Tensor, "backward", lambda loss, *_, **__: gpu.backward(loss)
    yield fake_tensor.FakeTensor, "tolist", to_list
    yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
