"""Measures the memory and the start-up time of the list of images: our arrays, and torchvision's list of objects.

    python -m moco.benchmarks.file_list [--images N] [--workers N] [--files N]

First part: it simulates a list of N images with ImageNet's names, once of files and once of members of a tar of 1000
class tars. It forks the data workers and lets each of them read every entry, as in an epoch. The memory that a worker
no longer shares afterwards is its copy of the list (PyTorch issue 13246). Second part: it creates a folder of fewer,
real and empty files and times its listing without and with the cache. It also times the start from a cache of N
images.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.benchmarks.file_list", file=sys.stderr)
    sys.exit(2)

import os
import platform
import tempfile
import time

import numpy as np
import torch
import torchvision

from moco.data import file_list_cache
from moco.data.file_list import ImageFolder
from moco.data.string_array import StringArray
from moco.data.tar_read import ArchivedImages
from moco.engine.command_line import PROCESSES, Parser, number
from moco.engine.launch_plan import memory
from moco.engine.progress import Progress

CLASSES = 1000
CHUNK = 100_000  # entries that a worker reads between two reports of its progress
MB = 1e6
BYTES, BYTES_OF_WORKER = 250, 70  # per image, of the list of objects: in this process, and in each worker


def main(argv=None):
    parser = Parser(__doc__, __spec__.name)
    add = parser.add_argument
    images, files = (number(int, CLASSES, high) for high in (10**10, 10**7))
    add("--images", metavar="N", type=images, default=1_281_167, help="length of the simulated list")
    add("--workers", metavar="N", type=PROCESSES, default=16, help="data workers to fork")
    add("--files", metavar="N", type=files, default=50_000, help="number of real files to list")
    args = parser.parse_args(argv)
    if not os.path.exists("/proc/self/smaps_rollup"):
        parser.error("this system has no /proc/self/smaps_rollup, which tells how much memory a process owns")
    if (need := args.images * (BYTES + BYTES_OF_WORKER * args.workers)) > memory():
        parser.error(
            f"--images {args.images} with --workers {args.workers} needs {need / 1e9:,.0f} GB, but the memory has "
            f"{memory() / 1e9:,.0f} GB; give fewer"
        )
    disk = os.statvfs(tempfile.gettempdir())
    if args.files + CLASSES > disk.f_favail and disk.f_files:  # some file systems count no files
        parser.error(
            f"--files {args.files} does not fit into {tempfile.gettempdir()!r}, which has room for {disk.f_favail} "
            "files; give fewer"
        )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__},"
    )
    print(f"torchvision {torchvision.__version__}; {args.images} images, {args.workers} workers; one repeat")
    print(f"{'list':20s} {'bytes per image':>15s} {'all workers grow by, MB':>24s}")
    task = Progress("file_list", 3 * args.images * (1 + args.workers), "entries made and read")
    for name, make, read in (
        ("arrays, files", arrays_of, entry),
        ("arrays, tar", archived_of, entry),
        ("list (torchvision)", samples_of, lambda samples, i: samples[i]),
    ):
        before = own_memory()
        entries = make(args.images)
        size = own_memory() - before
        task.add(args.images)
        grown = growth_of_workers(entries, read, args.workers, task)
        print(f"{name:20s} {size / args.images:15.1f} {grown / MB:24.1f}", flush=True)
        del entries
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        time_listings(args.files, args.images)


def name_of(i, images):
    """The label and the relative path of image i, in ImageNet's form."""
    label = i * CLASSES // images
    return label, f"n{label:08d}/n{label:08d}_{i:07d}.JPEG"


def arrays_of(images):
    """An ImageFolder whose files do not exist."""
    paths, ends, labels = bytearray(), np.zeros(images + 1, np.int64), np.empty(images, np.int32)
    for i in range(images):
        labels[i], path = name_of(i, images)
        paths += path.encode()
        ends[i + 1] = len(paths)
    folder = ImageFolder.__new__(ImageFolder)
    folder.root, folder.classes = "/data/imagenet/train", [f"n{c:08d}" for c in range(CLASSES)]
    folder._paths, folder._archived = StringArray(np.frombuffer(bytes(paths), np.uint8), ends), ()
    folder.labels = labels
    return folder


def archived_of(images):
    """The same for a tar of one tar for each class, without the tar."""
    folder, none = arrays_of(images), StringArray.of([""])
    archives, size = StringArray.of(f"!{name}.tar" for name in folder.classes), np.full(images, 110_000, np.uint32)
    arrays = {"archive": folder.labels.copy(), "offset": np.arange(images) * 110_592, "size": size}
    arrays |= {"archives": archives.data, "archives_ends": archives.ends, "files": none.data, "files_ends": none.ends}
    arrays |= {"archives_file": np.zeros(len(archives), np.int32), "files_states": np.zeros((1, 2), np.int64)}
    folder._archived = ArchivedImages("/data/ILSVRC2012_img_train.tar", arrays)
    return folder


def entry(folder, i):
    """What a worker looks up of image i, without reading it."""
    place = folder._archived.place(i) if i in folder._archived else None
    return folder.path(i), int(folder.labels[i]), place


def samples_of(images):
    """The list of objects that torchvision's ImageFolder keeps in `samples`."""
    return [("/data/imagenet/train/" + path, label) for label, path in (name_of(i, images) for i in range(images))]


def growth_of_workers(entries, read, workers, task):
    """Bytes by which the own memory of all forked processes together grows while each reads every entry once.

    The number of entries that they have read is added to `task`, a Progress.
    """
    receiver, sender = os.pipe()
    pids = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            for i in range(100):  # so that what every fork copies at first is not counted
                read(entries, i)
            before = own_memory()
            n = len(entries)
            for i in range(n):
                read(entries, i)
                if i % CHUNK == CHUNK - 1:
                    os.write(sender, f"{CHUNK} 0\n".encode())
            os.write(sender, f"{n % CHUNK} {own_memory() - before}\n".encode())
            os._exit(0)
        pids.append(pid)
    os.close(sender)
    grown = 0
    with os.fdopen(receiver) as pipe:
        for line in pipe:
            entries_read, more = map(int, line.split())
            task.add(entries_read)
            grown += more
    for pid in pids:
        os.waitpid(pid, 0)
    return grown


def own_memory():
    """Bytes of memory that this process shares with no other process."""
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file]
    return sum(int(words[1]) for words in lines if words[0] in ("Private_Dirty:", "Private_Clean:")) * 1024


def time_listings(files, images):
    """Times the listing of real files without and with a cache, and a start from a cache of the whole list."""
    with tempfile.TemporaryDirectory() as root:
        task = Progress("file_list", files, "files created")
        for i in range(files):
            _, path = name_of(i, files)
            if not os.path.isdir(folder := os.path.join(root, os.path.dirname(path))):
                os.mkdir(folder)
            os.close(os.open(os.path.join(root, path), os.O_CREAT))
            task.add()
        date_back(root)
        for words in ("without a cache", "from the cache"):
            start = time.perf_counter()
            folder = ImageFolder(root)
            print(f"{len(folder)} real files {words}: {time.perf_counter() - start:.2f} s")
        # Stores the whole list as the cache of this folder: equally many folders to check, but more images.
        full = arrays_of(images)
        arrays = file_list_cache.load(root) | {
            "paths": full._paths.data,
            "ends": full._paths.ends,
            "labels": full.labels,
        }
        names = [b".", *(f"n{c:08d}".encode() for c in range(CLASSES))]
        folders = [(name, file_list_cache.state_of(root, name)) for name in names]
        file_list_cache.store(root, arrays, folders, time.time_ns())
        start = time.perf_counter()
        folder = ImageFolder(root)
        print(f"{len(folder)} images from the cache: {time.perf_counter() - start:.2f} s")


def date_back(root):
    """Sets the times of a new folder back, so that its listing is cached."""
    for folder in (*(entry.path for entry in os.scandir(root)), root):
        os.utime(folder, (time.time() - 100,) * 2)


if __name__ == "__main__":
    sys.exit(main())
