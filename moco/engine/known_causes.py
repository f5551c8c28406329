"""Known causes of a run's end, which one line explains. Every other error keeps its traceback."""

import errno
import os
import re
import shutil
import signal

import torch

from moco.data.bad_image_substitutes import TooManyBadImages
from moco.data.image_reading import BadImageError, ImageReadError
from moco.distributed import RanksDiffer
from moco.engine.checkpoint_format import CheckpointError
from moco.engine.output_lock import OutputInUse
from moco.engine.rendezvous import RendezvousError

ON_EVERY_RANK = (FloatingPointError, RanksDiffer)  # every rank raises them, with the same message
CLEAR = (BadImageError, ImageReadError, TooManyBadImages, CheckpointError, OutputInUse, RendezvousError)
CLEAR += ON_EVERY_RANK
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SHARED = "/dev/shm"  # where the batches of the data workers lie
# The following match messages of torch. Shared memory is full: SIGBUS ended a worker, or a file can't be made there.
NO_SHARED_MEMORY = re.compile(r"DataLoader worker.*Bus error|</torch_\d+.*>.*(No space left|Cannot allocate)")
WORKER_KILLED = re.compile(r"DataLoader worker .*is killed by signal: (.+?)\. ")
NO_MEMORY = re.compile(r"(CUDA|Cuda|DefaultCPUAllocator).*(out of memory|allocate memory).*")
LOST_CONNECTION = re.compile(
    r"(Connection (closed|reset) by peer|Broken pipe|Connection was likely closed|ncclRemoteError).*"
)
FROM_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\n")


def known_cause(error):
    """What ended a run and what to do about it, without a traceback; None if `error` is of no known kind.

    Args:
        error: an exception. A data worker may have raised it, and then torch has put a traceback into its message. The
            lack of memory and a dead data worker count also if another exception followed from them.
    """
    if isinstance(error, CLEAR):
        return own_words(error)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f"to write {error.filename!r}" if error.filename else f"on the disk or in {SHARED}"
        return f"there is no space {where} ({error.strerror}); make room, then start again"
    if is_lost_connection(error):
        how = _sentences(LOST_CONNECTION, str(error), 1)
        return f"the connection to another rank was lost: {how}; the messages of the other ranks may say why"
    while error is not None:
        if line := _lack_or_death(error):
            return line
        error = error.__cause__ or error.__context__
    return None


def is_lost_connection(error):
    """Whether a collective failed since another rank has gone."""
    return isinstance(error, RuntimeError) and LOST_CONNECTION.search(str(error)) is not None


def own_words(error):
    """The message of an exception, without the traceback that torch puts into it if a data worker raised it."""
    text, kind = str(error), type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    before, found, words = text.rpartition(f"\n{name}: ")
    return words.strip() if found and FROM_WORKER.match(before) else text


def _lack_or_death(error):
    words = own_words(error)
    if NO_SHARED_MEMORY.search(words):
        size = f" ({shutil.disk_usage(SHARED).total / 1e9:.1f} GB here)" if os.path.isdir(SHARED) else ""
        return (
            f"a data worker ran out of shared memory: enlarge {SHARED}{size} (in a container by --shm-size or "
            "--ipc=host), or give fewer --workers"
        )
    if killed := WORKER_KILLED.search(words):
        by = next((n.name for n in signal.Signals if signal.strsignal(n) == killed[1]), killed[1])
        if by == "SIGKILL":
            return "a data worker was killed, probably because the memory was full; give fewer --workers"
        return (
            f"{by} ended a data worker; --resume auto continues the run; if it happens again, give --workers 0 and "
            "set PYTHONFAULTHANDLER=1 to see where"
        )
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or NO_MEMORY.search(words):
        detail = _sentences(NO_MEMORY, words, 3)
        return (
            f"the memory is full{f' ({detail})' * bool(detail)}; give a smaller --batch-size, --crop-size or "
            "--moco-k, or on a CPU fewer --workers"
        )
    return None


def _sentences(pattern, text, count):
    """The first sentences of what `pattern` matches in `text`; "" if it matches nothing."""
    found = pattern.search(text)
    return ". ".join(found[0].rstrip(".").split(". ")[:count]) if found else ""
