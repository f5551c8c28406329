#!/usr/bin/env python
"""Pretraining: MoCo v2 and the five asymmetric designs of "On the Importance of Asymmetry for Siamese Representation
Learning" (arXiv 2204.00613), each an --enable flag, alone or in any combination."""

import math
import os
import re
from functools import partial

import torch
from torchvision import models

from moco import checkpoint as ckpt
from moco import launch, options, resume
from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.asym_bn import check_group
from moco.asymmetry.mean_encoding import mean_encoding_plan
from moco.asymmetry.multicrop import contrastive_loss, multicrop_plan
from moco.asymmetry.scalemix import scalemix_plan
from moco.batchnorm import check_splits, in_words
from moco.bookkeeping import Books
from moco.builder import MoCo
from moco.device import autocast, grad_scaler, set_precision
from moco.distributed import data_parallel, from_rank_0, rank
from moco.image_folder import ImageFolder
from moco.interruption import exit_on_signals
from moco.loader import explained, training_loader
from moco.meters import accuracy
from moco.optim import cosine_lr, set_lr, sgd
from moco.options import number
from moco.prefetch import finisher
from moco.views.plan import baseline_plan


def build_parser():
    parser = options.Parser(description=__doc__)
    options.add_shared(parser, epochs=100, batch_size=256, lr=0.03, weight_decay=1e-4)
    parser.add_argument("--mini-crop-size", metavar="PX", default=96, type=number(int, 1), help="of MultiCrop's views")
    parser.add_argument("--tag", default="", help="of the checkpoints' names: checkpoint_TAG_EPOCH.pth.tar")
    parser.add_argument("--keep", metavar="N", type=number(int, 1), help="epochs' checkpoints to keep (default: all)")

    moco = parser.add_argument_group("MoCo")
    moco.add_argument("--moco-dim", metavar="N", default=128, type=number(int, 1), help="features of a key")
    moco.add_argument("--moco-k", metavar="N", default=65536, type=number(int, 1), help="keys in the queue")
    moco.add_argument("--moco-m", metavar="M", default=0.999, type=number(float, 0, 1), help="target's momentum")
    moco.add_argument(
        "--moco-t", metavar="T", default=0.2, type=number(float, 0, exclusive=True), help="softmax temperature"
    )
    moco.add_argument(
        "--bn-splits",
        metavar="N",
        default=1,
        type=number(int, 1),
        help="batch normalisation in N groups a process, so that it acts as N devices",
    )

    add_designs(parser)
    return parser


DESIGNS = {  # the paper's names, and the options that turn them on
    "MultiCrop": "enable_multicrop",
    "ScaleMix": "enable_scalemix",
    "AsymAug": "enable_asym_aug",
    "AsymBN": "enable_asym_bn",
    "MeanEnc": "enable_mean_encoding",
}


def designs_on(args):
    """The names of the designs that are on, in the paper's order."""
    return tuple(name for name, option in DESIGNS.items() if getattr(args, option))


def add_designs(parser):
    """Adds the --enable flags."""
    designs = parser.add_argument_group("asymmetric designs")
    designs.add_argument("--enable-multicrop", action="store_true", help="source: 6 more low-resolution views")
    designs.add_argument("--enable-scalemix", action="store_true", help="source: a view made of two, by a box mask")
    designs.add_argument(
        *("--enable-asym-aug", "--enable-asymm-aug"),
        action="store_true",
        help="both: a stronger recipe for the source, a weaker one for the target",
    )
    designs.add_argument("--enable-asym-bn", action="store_true", help="target: projector BN over several devices")
    designs.add_argument(
        "--asym-bn-group",
        metavar="N",
        default=8,
        type=number(int, 1),
        help="devices (processes times --bn-splits) that AsymBN normalises over",
    )
    designs.add_argument("--enable-mean-encoding", action="store_true", help="target: mean encoding of 2 views")


def main(argv=None):
    args, run, folder = options.parse(build_parser(), prepare, argv, least=2)  # batch normalisation needs 2 images
    launch.run(train, run, args, run, folder, timeout=args.timeout)


def prepare(args, run):
    """Checks at the door what this script alone knows; returns the ImageFolder."""
    if os.path.basename(args.tag) != args.tag or len(os.fsencode(args.tag)) > 200:
        raise ValueError(f"--tag {args.tag!r} is part of a file name: 200 bytes at most, no path separator")
    check_model(args, run)
    folder = ImageFolder(os.path.join(args.data, "train"))
    options.check_folder(folder, args)
    args.images = len(folder)
    resume.check_resume(args, run, lambda: build(args), checkpoints(args).values())
    options.check_output(args, run, names(args))
    return folder


def check_model(args, run):
    """Refuses a queue, or groups of batch normalisation, that do not suit the batch and the processes."""
    if args.moco_k < args.total_batch:
        raise ValueError(
            f"--moco-k {args.moco_k} is smaller than a batch of {args.total_batch}; give as much at least"
        )
    if 4 * args.moco_k * args.moco_dim > launch.memory():
        raise ValueError(f"--moco-k {args.moco_k} times --moco-dim {args.moco_dim} keys do not fit into the memory")
    check_splits(args.bn_splits, args.batch_size // run.local)
    if args.enable_asym_bn:
        check_group(args.asym_bn_group, run.world, args.bn_splits)


def view_plan(args):
    """What each side sees, as the flags say."""
    plan = baseline_plan(args.crop_size)
    if args.enable_multicrop:
        plan = multicrop_plan(plan, args.mini_crop_size)
    if args.enable_scalemix:
        plan = scalemix_plan(plan)
    if args.enable_asym_aug:
        plan = asym_aug_plan(plan)
    if args.enable_mean_encoding:
        plan = mean_encoding_plan(plan)
    return plan


def build(args, device=None):
    """The model, and its optimizer over all parameters, so that published optimizer states fit."""
    model = MoCo(
        lambda num_classes: models.get_model(args.arch, num_classes=num_classes),
        *(args.moco_dim, args.moco_k, args.moco_m, args.moco_t, args.enable_asym_bn),
        seed=args.seed,
        asym_bn_group=args.asym_bn_group,
        bn_splits=args.bn_splits,
    ).to(device, memory_format=torch.channels_last)
    if args.compile:
        for encoder in (model.encoder_q, model.encoder_k):
            encoder.compile(dynamic=False)
    return model, sgd(model.parameters(), args.lr, args.momentum, args.weight_decay)


@explained
def train(device, args, run, folder):
    """One process of a run."""
    args.seed, args.resume = from_rank_0((args.seed, args.resume))
    resume.check_same_options(args)
    torch.backends.cudnn.benchmark = True
    set_precision(args.precision)
    plan = view_plan(args)
    model, optimizer = build(args, device)
    scaler = grad_scaler(device, args.precision)
    start_epoch, start, earlier = 0, 0, None
    if args.resume:
        checkpoint = ckpt.read_on_all_ranks(args.resume)
        resume.restore(checkpoint, model, optimizer, scaler)
        (start_epoch, start), earlier = resume.place_of(checkpoint), resume.bn_batch(checkpoint)
    if args.start_epoch not in (None, start_epoch):
        start_epoch, start = args.start_epoch, 0
    net = data_parallel(model, device, lambda net: loss_of_noise(net, plan, args, run, device))
    workers = options.workers_a_process(args, run)
    loader = training_loader(
        *(folder, plan.views, args.total_batch, args.seed, workers),
        augment_on=args.augment_on,
        substitutes=options.substitutes(args, folder),
    )
    if rank() == 0:
        announce(args, run, plan, device, (start_epoch, start), workers, earlier)

    def save(name, epoch, step=0, remove=()):
        """Writes a checkpoint of `epoch` epochs and `step` steps."""
        if rank() == 0:
            more = {"step": step, "processes": run.world, "scaler": scaler.state_dict()}
            checkpoint = ckpt.of_run(epoch, model, optimizer, resume.result_options(args), **more)
            books.saver.save(checkpoint, path_of(args, name), remove=remove)

    with Books(args, device, (start_epoch, start), loader, optimizer, partial(save, "last")) as books:
        files = min(args.keep or args.epochs, args.epochs - start_epoch) + 1  # and the one within an epoch
        files -= len(checkpoints(args)) if args.keep else "last" in checkpoints(args)  # which make room
        books.check_space([model.state_dict(), optimizer.state_dict()], files)
        for book in books.epochs():
            set_lr(optimizer, lr := cosine_lr(args.lr, book.epoch, args.epochs))
            train_epoch(net, optimizer, scaler, plan, book, args, device)
            book.epoch_done(lr=lr)
            save(f"{book.epoch:04d}", book.epoch + 1, remove=outdated(args, book.epoch))


def path_of(args, name):
    """The path of a checkpoint: of an epoch, its 0-based number with 4 digits, or "last", the one within an epoch."""
    return os.path.join(args.output_dir, f"checkpoint_{args.tag}_{name}.pth.tar")


def names(args):
    """The pattern of `path_of`'s file names; its group is the name."""
    return rf"checkpoint_{re.escape(args.tag)}_(\d{{4,}}|last)\.pth\.tar"


def checkpoints(args):
    """The checkpoints of this run's --output-dir and --tag: dict of `path_of`'s names to paths."""
    files = os.listdir(args.output_dir) if os.path.isdir(args.output_dir) else []
    matches = [match for match in map(re.compile(names(args)).fullmatch, files) if match]
    return {match[1]: os.path.join(args.output_dir, match[0]) for match in matches}


def outdated(args, epoch):
    """The paths of the epochs' checkpoints that --keep has removed once that of `epoch` is written."""
    if args.keep is None:
        return []
    return [path for name, path in checkpoints(args).items() if name != "last" and int(name) <= epoch - args.keep]


def train_epoch(net, optimizer, scaler, plan, book, args, device):
    """An epoch's steps, of which `book` keeps the books."""
    net.train()
    for i, (views, _) in book.steps(finisher(plan.views, args.augment_on, device)):
        step = book.epoch * book.steps_in_all + i
        book.step_done(i, len(views[0]), *train_step(net, optimizer, scaler, plan.split(views), step, args))


def train_step(net, optimizer, scaler, views, step, args):
    """One update; returns the loss, Acc@1 and Acc@5 of this process's share, on the device: nothing waits for them.

    Args:
        views: as `MoCo.forward` takes them. step: the global step.
    """
    with autocast(views[0][0].device, args.precision):
        logits, labels = net(*views, step=step)
        loss = contrastive_loss(logits, labels)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), *accuracy(logits[0], labels[0], topk=(1, 5))


def loss_of_noise(net, plan, args, run, device):
    """The loss of a batch of random images.

    There are as many as in a real batch where kernels are made or chosen for it, else as few as will do.
    """
    n = args.total_batch // run.world if args.compile or device.type == "cuda" else 2 * args.bn_splits
    views = [torch.randn(n, 3, view.size, view.size, device=device) for view in plan.views]
    with autocast(device, args.precision):
        return contrastive_loss(*net(*plan.split(views), step=0))


def announce(args, run, plan, device, start, workers, earlier):
    """Prints what is about to run; `earlier` is `resume.bn_batch` of the resumed checkpoint, or None."""
    print(f"designs: {', '.join(designs_on(args)) or 'none, the MoCo v2 baseline'}")
    if args.enable_asym_bn and run.world * args.bn_splits == 1:
        print("note: AsymBN changes nothing where batch normalisation sees the whole batch anyway")
    print(plan)
    options.announce(args, run, device, start, workers)
    print(in_words(args.bn_splits, run.world, args.total_batch, earlier))
    print(f"loss of a blind guess: ln(K + 1) = {math.log(args.moco_k + 1):.4f}", flush=True)


if __name__ == "__main__":
    exit_on_signals()
    main()
