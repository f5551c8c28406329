"""What the flags of main_moco.py say is what trains, on every rank."""

import math

import pytest
import torch

import main_moco
from moco.data.file_list import ImageFolder
from moco.data.sampler import EpochBatchSampler
from moco.data.view_datasets import RandomViews
from moco.views.normalize import normalize_images
from tests.ranks import run_ranks, script_in_rank
from tests.tiny_net import ARCH


def test_the_flags_reach_the_encoders(imagenet, tmp_path, monkeypatch):
    compiled, seen = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how)))
    build = main_moco.build

    def recording(*args):
        model, optimizer = build(*args)
        model.encoder_q.register_forward_hook(lambda module, images, out: seen.append(out.dtype))
        seen.append(model)
        return model, optimizer

    monkeypatch.setattr(main_moco, "build", recording)
    words = [str(imagenet), "-a", ARCH, "--crop-size", "32", "-b", "48", "--moco-k", "64", "-j", "0"]
    words += ["--epochs", "1", "--compile", "--precision", "bf16", "--output-dir", str(tmp_path)]
    main_moco.main(words)
    model, *dtypes = seen
    assert compiled == [(model.encoder_q, {"dynamic": False}), (model.encoder_k, {"dynamic": False})]
    assert dtypes == [torch.bfloat16] * 2 and model.queue.dtype == torch.float32
    assert model.encoder_q.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def what_trains(words):
    """Runs main_moco.py in this rank and returns what went into the model and how it was set up."""
    seen, build = {"batches": []}, main_moco.build

    def recording(*args):
        seen["model"], seen["optimizer"] = build(*args)
        seen["model"].register_forward_pre_hook(
            lambda module, args, kwargs: seen["batches"].append(
                (kwargs["step"], [x for name, part in kwargs.items() if name != "step" for x in part])
            ),
            with_kwargs=True,
        )
        return seen["model"], seen["optimizer"]

    main_moco.build = recording
    script_in_rank(main_moco, words, tiny=True)
    model = seen["model"]
    group = model.encoder_k.fc[1].group
    return {
        "batches": seen["batches"][-4:],  # those before are of the start
        "settings": (model.K, model.m, model.T, model.queue.shape[0]),
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in seen["optimizer"].param_groups],
        "asym_bn_ranks": torch.distributed.get_process_group_ranks(group),
    }


def test_what_the_flags_say_is_what_trains(imagenet, tmp_path):
    """4 processes, 2 epochs of 2 steps: every image on every rank, the model's and the optimizer's settings."""
    words = [
        str(imagenet),
        "-a",
        "resnet18",
        "--crop-size",
        "32",
        "-b",
        "40",
        "--epochs",
        "2",
        "--seed",
        "3",
        "--tag",
        "t",
    ]
    words += ["--moco-k", "50", "--moco-dim", "6", "--moco-t", "0.3", "--moco-m", "0.8", "--lr", "0.5", "--wd", "0.01"]
    words += ["--momentum", "0.7", "--enable-asym-bn", "--asym-bn-group", "2", "--enable-mean-encoding"]
    ranks = run_ranks(what_trains, 4, [*words, "--output-dir", str(tmp_path)])
    args = main_moco.build_parser().parse_args(words)
    dataset = RandomViews(ImageFolder(imagenet / "train"), main_moco.view_plan(args).views, seed=3)
    order = EpochBatchSampler(96, 40, seed=3)
    for epoch in range(2):
        order.epoch = epoch
        for i, addresses in enumerate(order):
            for rank in range(4):
                step, views = ranks[rank]["batches"][2 * epoch + i]
                items = [dataset[address][0] for address in addresses[10 * rank : 10 * rank + 10]]
                expected = [normalize_images(torch.stack(view)) for view in zip(*items, strict=True)]
                assert step == 2 * epoch + i and len(views) == len(expected) == 3
                assert all(map(torch.equal, views, expected))
    for rank in range(4):
        assert ranks[rank]["settings"] == (50, 0.8, 0.3, 6)
        (group,) = ranks[rank]["groups"]
        assert group["momentum"] == 0.7 and group["weight_decay"] == 0.01
        assert math.isclose(group["lr"], 0.5 * 0.5)  # of the second of two epochs
        assert ranks[rank]["asym_bn_ranks"] == [rank // 2 * 2, rank // 2 * 2 + 1]
    assert (tmp_path / "checkpoint_t_0001.pth.tar").exists()


def other_flags(words, flag):
    rank = torch.distributed.get_rank()
    try:
        script_in_rank(main_moco, [*words, flag, str(1 + rank)])
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize(
    "flag, said", [("--lr", "1.0 on rank 0, but 2.0 on rank 1"), ("--print-freq", "1 on rank 0, but 2 on rank 1")]
)
def test_nodes_that_disagree_stop(flag, said, imagenet, tmp_path):
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "32", "-b", "48", "--output-dir", str(tmp_path)]
    for message in run_ranks(other_flags, 2, words, flag):
        assert message == f"{flag} is {said}; give the same on every node"
