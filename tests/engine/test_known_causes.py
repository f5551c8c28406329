"""Why a run ended, in one line: images, data workers, memory, other ranks. Other errors keep their traceback."""

import errno
import os
import signal
import time
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from moco.data.bad_image_substitutes import TooManyBadImages
from moco.data.file_list import ImageFolder
from moco.data.image_reading import BadImageError, ImageReadError
from moco.distributed import RanksDiffer
from moco.engine.checkpoint_format import CheckpointError
from moco.engine.known_causes import is_lost_connection, known_cause
from moco.engine.rendezvous import RendezvousError
from moco.loader import central_loader, training_loader
from moco.views.augmentation_recipes import baseline_plan


def error_of(function):
    """The exception that a function raises, without the tracebacks, which would keep data workers alive."""
    try:
        function()
    except Exception as error:
        link = error
        while link is not None:
            link = link.with_traceback(None).__context__
        return error
    pytest.fail("no error")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_with_a_way_out(workers, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"a web page")
    folder, views = ImageFolder(tmp_path), baseline_plan(24).views
    wrong = f"can't decode the image {folder.path(0)!r}: it is none of JPEG, PNG, PPM, BMP, TIFF, WEBP, GIF"
    for augment_on in ("cpu", "device"):
        loader = training_loader(folder, views, 1, 0, workers, augment_on=augment_on)
        loader.batch_sampler.epoch = loader.batch_sampler.start = 0
        skip = "or give --on-bad-image skip, which uses another image instead"
        assert known_cause(error_of(partial(list, loader))) == f"{wrong}; repair or remove it, {skip}"
    loader = central_loader(folder, 24, 1, workers)
    assert known_cause(error_of(partial(list, loader))) == f"{wrong}; repair or remove it"


class Failing(Dataset):
    """Its second item raises an error, or ends the data worker by a signal."""

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1 and isinstance(self.fault, int):
            os.kill(os.getpid(), self.fault)
            time.sleep(10)
        if index == 1:
            raise self.fault
        return index


@pytest.mark.parametrize(
    "number, said",
    [
        (signal.SIGKILL, "a data worker was killed, probably because the memory was full; give fewer --workers"),
        (signal.SIGBUS, "a data worker ran out of shared memory: enlarge /dev/shm"),
        (signal.SIGSEGV, "SIGSEGV ended a data worker; --resume auto continues the run; if it happens again"),
    ],
)
def test_the_cause_of_a_data_workers_death_is_said(number, said):
    error = error_of(lambda: list(DataLoader(Failing(number), num_workers=1)))
    assert known_cause(error).startswith(said) and "\n" not in known_cause(error)


CLEAR = [BadImageError, ImageReadError, TooManyBadImages, CheckpointError, RendezvousError, RanksDiffer]


@pytest.mark.parametrize("kind", [*CLEAR, FloatingPointError])
def test_errors_of_the_project_speak_for_themselves(kind):
    words = "the value; the way out\n  one/image.jpg\n  another.jpg"
    assert known_cause(kind(words)) == words
    assert known_cause(error_of(lambda: list(DataLoader(Failing(kind(words)), num_workers=1)))) == words


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB of which 1 GiB is free. "


@pytest.mark.parametrize(
    "error, detail",
    [
        (torch.OutOfMemoryError(f"{CUDA}Including non-PyTorch memory, ..."), f" ({CUDA.rstrip('. ')})"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might ..."), " (CUDA error: out of memory)"),
        (MemoryError(), ""),
    ],
)
def test_a_lack_of_memory_names_what_to_reduce(error, detail):
    way_out = "give a smaller --batch-size, --crop-size or --moco-k, or on a CPU fewer --workers"
    assert known_cause(error) == f"the memory is full{detail}; {way_out}"
    assert known_cause(error_of(lambda: list(DataLoader(Failing(error), num_workers=1)))) == known_cause(error)
    try:
        try:
            raise error
        finally:
            {}["not found while the error is handled"]
    except KeyError as later:
        assert known_cause(later) == known_cause(error)


def test_a_cpu_without_memory_is_recognised():
    said = known_cause(error_of(lambda: torch.empty(10**15)))
    assert said.startswith("the memory is full (DefaultCPUAllocator: can't allocate memory: you tried to allocate")


def test_a_full_shared_memory_is_recognised():
    error = RuntimeError("unable to write to file </torch_77_123_0>: No space left on device (28)")
    assert "enlarge /dev/shm" in known_cause(error)


def test_a_lost_connection_is_told_from_a_broken_pipe_of_this_process():
    gloo = "[/pytorch/pair.cc:561] Connection closed by peer [127.0.0.1]:47026. This is typically caused by ... \n\n"
    error = RuntimeError(gloo)
    assert is_lost_connection(error)
    lost = "the connection to another rank was lost: Connection closed by peer [127.0.0.1]:47026"
    assert known_cause(error) == f"{lost}; the messages of the other ranks may say why"
    assert known_cause(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


def test_other_errors_are_of_no_known_cause():
    others = [
        "Caught OSError in DataLoader worker process 0: can't decode '/data/torch_1/x.jpg': No space left on device",
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376",
        "can't write '/scratch/torch_2/c': No space left on device",
    ]
    for error in (KeyError("x"), OSError("can't decode the image"), *map(RuntimeError, others)):
        assert known_cause(error) is None
        assert known_cause(error_of(lambda error=error: list(DataLoader(Failing(error), num_workers=1)))) is None
    try:
        try:
            raise BadImageError("can't decode the image 'x'; repair or remove it")
        finally:
            {}["a bug of the code that handles bad images"]
    except KeyError as bug:
        assert known_cause(bug) is None
