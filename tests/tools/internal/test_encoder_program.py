"""What the programs that compute features share: bad command lines, the processes, and stop signals."""

import os
import types

import pytest
import torch

from moco.data.file_list import ImageFolder
from moco.engine import progress
from moco.evaluation.pretrained_encoder import open_encoder
from moco.tools.internal import encoder_program
from moco.tools.internal.encoder_program import EncoderParser, Encoding, launch_of, start
from tests.ranks import run_ranks
from tests.tiny_net import ARCH
from tests.tools.conftest import CLOSE

TOOLS = ["knn", "extract", "neighbours"]


def words(tool, checkpoint, imagenet, *more):
    return [checkpoint, imagenet, *(["--out", os.devnull + ".npz"] if tool == "extract" else []), *more]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--arch", "resnet18"], f"is of --arch {ARCH}, not resnet18; give --arch {ARCH}"),
        (["--arch", "resnet19"], "invalid choice: 'resnet19'; did you mean resnet18? --help lists all "),
        (["--crop-size", 7], f"--crop-size 7 is too small for {ARCH}, whose strides reduce 32 pixels to 1; a view"),
        (["--crop-size", 10**6], "GB of memory; give a smaller --crop-size, or a smaller --batch-size"),
        (["--crop-size", 0], "'0' is not an integer >= 1"),
        (["--nproc", 3, "--batch-size", 2], "--batch-size 2 is too small for 3 processes; give 3 or more"),
        (["--nproc", 0], "'0' is not an integer >= 1"),
        (["-j", -1], "'-1' is not an integer >= 0"),
        (["--croppsize", 3], "unknown flag --croppsize; did you mean --crop-size?"),
    ],
)
def test_flags_that_they_refuse(tool, flags, message, checkpoints, imagenet, refused):
    refused(tool, words(tool, checkpoints["own"], imagenet, *flags), message)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no checkpoint 'FILE'"),
        (b"", "the checkpoint 'FILE' is an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "'FILE' is not a checkpoint but a Git LFS"),
        ("half", "the checkpoint 'FILE' is cut short"),
        ("flip", "the checkpoint 'FILE' is damaged ("),
        ({"state_dict": {"a.weight": torch.ones(1)}}, "the checkpoint 'FILE' is of an unknown network; give --arch"),
        ({"epoch": 1}, "the checkpoint 'FILE' holds no tensors under 'state_dict'; its keys are 'epoch'"),
    ],
)
def test_checkpoints_that_they_refuse(tool, content, message, checkpoints, imagenet, tmp_path, refused):
    path = tmp_path / "c.pth"
    with open(checkpoints["own"], "rb") as file:
        data = bytearray(file.read())
    if content == "half":
        path.write_bytes(data[: len(data) // 2])
    elif content == "flip":
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    elif isinstance(content, dict):
        torch.save(content, path)
    elif content is not None:
        path.write_bytes(content)
    refused(tool, words(tool, path, imagenet), message.replace("FILE", str(path)))


@pytest.mark.parametrize("tool", TOOLS)
def test_arguments_that_are_missing(tool, checkpoints, refused):
    refused(tool, [], "CHECKPOINT is missing; give the checkpoint of this project, a published one, weights of torch")
    refused(tool, ["none"], "DIR is missing; give the folder ")


def options(**more):
    return types.SimpleNamespace(**{"nproc": None, "batch_size": 8, "workers": 0} | more)


def test_one_process_per_gpu(monkeypatch):
    assert launch_of(options()).mode == "alone" and launch_of(options(nproc=1)).mode == "alone"
    launch = launch_of(options(nproc=2))
    assert (launch.mode, launch.local, launch.backend) == ("spawn", 2, "gloo")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    launch = launch_of(options())
    assert (launch.mode, launch.local, launch.backend) == ("spawn", 4, "nccl")
    assert launch_of(options(nproc=1)).mode == "alone"
    with pytest.raises(ValueError, match="--nproc 5: the number of visible GPUs is 4; give 4 at most"):
        launch_of(options(nproc=5))


RESULTS = []


def work(encoding, image, other):
    RESULTS.append((encoding.encoder.network(image), other is encoding.encoder))


def test_a_network_with_many_tensors_is_sent_without_shared_memory(checkpoints, monkeypatch):
    """A process may often open only 1024 files, and torch would open one for each tensor."""
    args = options(checkpoint=checkpoints["own"], arch=None, stem=None, crop_size=None, nproc=2)
    encoder = EncoderParser("", "m", "", "").open(args)
    assert encoder.checkpoint == {}  # the optimizer and the other encoder are not sent
    sent, image = [], torch.rand(1, 3, 32, 32)
    monkeypatch.setattr(encoder_program, "start_processes", lambda *words: sent.append(words))
    start(work, args, encoder, image, encoder)
    ((worker, launch, data),) = sent
    assert launch.local == 2 and isinstance(data, bytes)
    worker(torch.device("cpu"), data)
    ((result, same),) = RESULTS
    torch.testing.assert_close(result, encoder.network(image), **CLOSE)
    assert same


def steps_of(imagenet):
    """What a rank's Progress gets, and the sizes of its batches."""
    done = []
    progress.Progress.add = lambda self, images: done.append((images, self.total))
    encoding = Encoding(torch.device("cpu"), options(batch_size=10), open_encoder("none", ARCH, 32))
    loader = encoding.loader(ImageFolder(imagenet / "val"), "test")
    step_done = encoding.progress("test", loader)
    for images in [loader.batch_size] * 3:
        step_done(images)
    return loader.batch_size, len(loader.sampler), done


def test_the_batch_is_shared_and_progress_counts_the_images_of_all_processes(imagenet):
    first, second = run_ranks(steps_of, 2, imagenet)
    assert first == second == (5, 18, [(10, 36)] * 3)
