"""Fuzzer: feeds mutated images, checkpoints and tar archives to the code that reads them.

    python -m moco.faults.fuzz [--files N] [--seed N] [--keep DIR]

Each file must either be read or be refused with the documented error. Another exception, a crash of the interpreter, a
hang, too much memory, or a decoder that disagrees with Pillow is a finding, and its file is kept.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.faults.fuzz", file=sys.stderr)
    sys.exit(2)

import contextlib
import io
import multiprocessing
import os
import random
import tempfile
import zipfile
import zlib
from collections import Counter

import numpy as np
import torch
from PIL import Image

from moco.data.file_list import ImageFolder
from moco.data.image_decoding import DECODER, decode_to_pil, decode_to_tensor
from moco.data.image_reading import BadImageError, read_file
from moco.data.jpeg_decoders import PILLOW, TURNED
from moco.engine.checkpoint_file_read import newest_intact, read
from moco.engine.checkpoint_format import CheckpointError, checkpoint_of
from moco.engine.checkpoint_resume import check_resumable, restore
from moco.engine.command_line import SEED, Parser, number, output_folder
from moco.engine.pretrained_backbone import backbone_for
from moco.engine.progress import Progress
from moco.faults.internal.hostile_archives import archives, mutated_headers
from moco.tools.internal.crash_proof_map import limit_memory

OPTIONS = {"arch": "resnet18", "seed": 1}
ALLOWED = ("read", "refused", "read without labels")  # any other outcome is a finding
SECONDS, MEMORY = 20, 3 * 2**30  # limits for reading one file: time, and bytes in addition to those of an idle process


def images(rng):
    """Valid images of many formats, all with the extension of a JPEG: a list of (extension, bytes)."""
    photo = Image.fromarray(np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (40, 52, 3), np.uint8))
    grey, grey16 = photo.convert("L"), Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50) * 30)
    kinds = [(photo, "JPEG", {}), (photo, "JPEG", {"progressive": True}), (photo.convert("CMYK"), "JPEG", {})]
    kinds += [(photo, "JPEG", {"exif": TURNED}), (photo, "JPEG", {"restart_marker_blocks": 2})]
    kinds += [(grey, "JPEG", {}), (photo, "PNG", {}), (photo.quantize(16), "PNG", {"transparency": 0})]
    kinds += [(grey16, "PNG", {}), (photo, "BMP", {}), (photo, "WEBP", {}), (photo, "TIFF", {}), (photo, "PPM", {})]
    kinds += [(photo, "TIFF", {"compression": "tiff_lzw"}), (photo, "GIF", {})]
    return [(".jpg", _written(lambda path, k=kind: k[0].save(path, k[1], **k[2]))) for kind in kinds]


def checkpoints(_rng):
    """Valid checkpoints in torch's current and old format: a list of (extension, bytes)."""
    model, optimizer = _small_model()
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    whole = checkpoint_of(2, model, optimizer, OPTIONS, step=3, processes=2)
    return [
        (".pth.tar", _written(lambda path, z=zipped: torch.save(whole, path, _use_new_zipfile_serialization=z)))
        for zipped in (True, False)
    ]


def _small_model():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 8))
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def _written(write):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")
        write(path)
        with open(path, "rb") as file:
            return file.read()


def mutated(data, others, rng):
    """A copy of `data` with one to three mutations; `others` are data that parts are taken from."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
        end = min(len(data), start + rng.choice((1, 2, 4, 16, 300)))
        kind = rng.randrange(8)
        if kind == 0:
            del data[start:]
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:end] = rng.randbytes(end - start)
        elif kind == 3:
            data[start:end] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - start)
        elif kind == 4:
            data[start:start] = data[start:end] * rng.randrange(1, 50)
        elif kind == 5 and end > start:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 6:
            data[start:] = rng.choice(others)[start:]
        elif kind == 7:
            data[:start] = rng.choice(others)[:start]
    return bytes(data)


def mutated_inside(data, rng):
    """A checkpoint with a mutated record or a mutated value inside a valid archive."""
    if rng.random() < 0.5:
        checkpoint = torch.load(io.BytesIO(data), weights_only=True)
        part, junk = checkpoint, (None, "", "x", -1, 2**70, 1.5, True, [], {}, {"a": 1}, torch.zeros(2), float("nan"))
        while True:
            key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
            if isinstance(part[key], (dict, list)) and part[key] and rng.random() < 0.7:
                part = part[key]
                continue
            part[key] = rng.choice(junk)
            return _written(lambda path: torch.save(checkpoint, path))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([name for name, record in records.items() if record])
    records[name] = mutated(records[name], list(records.values()), rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return buffer.getvalue()


def read_image(path):
    """Decodes an image in both ways, and by Pillow alone.

    Returns:
        "read", "refused", or a finding: how the results differ.
    """
    results = set()
    for decode, decoder in ((decode_to_pil, DECODER), (decode_to_tensor, DECODER), (decode_to_pil, PILLOW)):
        try:
            results.add(_checksum(np.asarray(decode(read_file(path), path, decoder))))
        except OSError as error:
            if path not in str(error):
                raise
            results.add("refused")
    if len(results) > 1:
        return "refused by one decoder only" if "refused" in results else "the decoders' pixels differ"
    return "refused" if results == {"refused"} else "read"


def _checksum(pixels):
    return pixels.shape, zlib.crc32(pixels)


def read_checkpoint(path):
    """Reads a checkpoint as --resume auto, --resume and --pretrained do; returns "read" or "refused"."""
    with contextlib.redirect_stdout(io.StringIO()):  # hides warnings
        newest_intact([path])
    try:
        checkpoint = read(path)
        model, optimizer = _small_model()
        check_resumable(checkpoint, path, model, optimizer, OPTIONS)
        restore(checkpoint, model, optimizer)
        backbone_for(model, checkpoint, path, "resnet18")
    except CheckpointError:
        return "refused"
    return "read"


def read_archive(path):
    """Lists an archive as pretraining, linear classification and extract do, and reads its images.

    Returns:
        "read", "refused", or "read without labels" if only some of them can use the archive.
    """
    outcomes = []
    for how in ({"labels": False}, {}, {"any_tree": True}):
        try:
            folder = ImageFolder(path, **how)
            folder.summary()
            outcomes.append("read")
        except OSError as error:
            if path not in str(error) or "\n" in str(error):
                raise
            outcomes.append("refused")
            continue
        for i in range(len(folder)):
            with contextlib.suppress(BadImageError):  # it is too large
                folder.read(i)
    return outcomes[0] if len(set(outcomes)) == 1 else "read without labels"


KINDS = {
    "images": (images, read_image),
    "checkpoints": (checkpoints, read_checkpoint),
    "archives": (archives, read_archive),
}


def _serve(connection):
    """Reads files for the parent process, with limited memory."""
    limit_memory(MEMORY)
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # decoders print warnings about most files
    while True:
        kind, path = connection.recv()
        try:
            connection.send(KINDS[kind][1](path))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")


class Reader:
    """A process that reads files; it is started again after it died or hung."""

    def __init__(self):
        self.process = None

    def read(self, kind, path):
        """Reads a file; returns the outcome in words."""
        if self.process is None:
            self.connection, end = multiprocessing.Pipe()
            self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=(end,), daemon=True)
            self.process.start()
            end.close()
        try:
            self.connection.send((kind, path))
            if self.connection.poll(SECONDS):
                return self.connection.recv()
            outcome = "hang"
        except (EOFError, ConnectionError):
            outcome = "crash"
        self.close()
        return outcome

    def close(self):
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def fuzz(kind, files, seed, keep):
    """Reads `files` mutated files of a kind; returns a Counter of the outcomes. Findings go to the folder `keep`."""
    rng, outcomes, reader = random.Random(f"{kind} {seed}"), Counter(), Reader()
    sources, task = KINDS[kind][0](rng), Progress(f"fuzzing {kind}", files, "files")
    with tempfile.TemporaryDirectory() as folder:
        for i in range(files):
            extension, data = rng.choice(sources)
            if kind == "checkpoints" and data.startswith(b"PK") and rng.random() < 0.7:
                data = mutated_inside(data, rng)
            elif kind == "archives" and rng.random() < 0.7:
                data = mutated_headers(data, rng)
            else:
                data = mutated(data, [other for _, other in sources], rng)
            path = os.path.join(folder, f"{i}{extension}")
            with open(path, "wb") as file:
                file.write(data)
            outcome = reader.read(kind, path)
            outcomes[outcome.replace(path, "FILE")] += 1
            if outcome in ALLOWED:
                os.remove(path)
            else:
                os.makedirs(keep, exist_ok=True)
                os.replace(path, os.path.join(keep, f"{kind}-{seed}-{i}{extension}"))
            task.add()
    reader.close()
    return outcomes


def main(argv=None):
    parser = Parser(__doc__, __spec__.name)
    add = parser.add_argument
    add("--files", metavar="N", type=number(int, 1), default=3000, help="number of files of each kind")
    add("--seed", metavar="N", type=SEED, default=0, help="random seed of the mutations")
    add("--keep", metavar="DIR", type=output_folder, default="findings", help="folder for the files of findings")
    args = parser.parse_args(argv)
    findings = 0
    for kind in KINDS:
        for outcome, count in fuzz(kind, args.files, args.seed, args.keep).most_common():
            print(f"{kind}: {count} x {outcome}", flush=True)
            findings += outcome not in ALLOWED
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
