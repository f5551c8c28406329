#!/usr/bin/env python
"""Linear classification on frozen features: a new `fc` trained on the backbone that main_moco.py pretrained."""

import math
import os
import re
from functools import partial

import torch
import torch.nn.functional as F
from torchvision import models

from moco import checkpoint as ckpt
from moco import launch, options, resume, watchdog
from moco.asymmetry.asym_aug import asym_aug_plan
from moco.bookkeeping import Books
from moco.console import say
from moco.device import at_least_fp32, autocast, set_precision
from moco.distributed import all_sum, data_parallel, from_rank_0, rank, world_size
from moco.image_folder import ImageFolder
from moco.interruption import exit_on_signals
from moco.loader import explained, training_loader, validation_loader
from moco.meters import ProgressMeter, Stopwatch, accuracy, correct
from moco.optim import LARS, cosine_lr, set_lr
from moco.prefetch import finisher
from moco.views.normalize import normalize_images
from moco.views.plan import baseline_plan

CHECKPOINT, LAST = "checkpoint.pth.tar", "checkpoint_last.pth.tar"  # of an epoch's end, and within an epoch
BEST = "model_best.pth.tar"


def build_parser():
    parser = options.Parser(description=__doc__)
    options.add_shared(parser, epochs=90, batch_size=4096, lr=0.1, weight_decay=0.0)
    parser.add_argument("--pretrained", metavar="FILE", help="checkpoint of the backbone; none for a random one")
    parser.add_argument("--lars", action="store_true", help="use LARS instead of SGD")
    parser.add_argument("-e", "--evaluate", action="store_true", help="only validate the classifier of --resume")
    return parser


def main(argv=None):
    args, run, folders = options.parse(build_parser(), prepare, argv)
    launch.run(train, run, args, run, *folders, timeout=args.timeout)


def prepare(args, run):
    """Checks at the door what this script alone knows; returns the ImageFolders train and val."""
    check_source(args)
    args.init_lr = args.lr * args.batch_size / 256
    val = ImageFolder(os.path.join(args.data, "val"))
    if args.evaluate:
        resume.check_resume(args, run, lambda: build(args, len(val.classes)), checkpoints(args), any_options=True)
        check_source(args)
        return None, val
    train = ImageFolder(os.path.join(args.data, "train"))
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))[0]
        raise ValueError(f"train and val in {args.data!r} must have the same classes; {odd!r} is only in one of them")
    options.check_folder(train, args)
    args.images = len(train)
    resume.check_resume(args, run, lambda: build(args, len(val.classes)), checkpoints(args))
    check_source(args)
    options.check_output(args, run, "|".join(map(re.escape, (CHECKPOINT, LAST, BEST))))
    if args.pretrained not in (None, "none") and run.has_rank_0:
        ckpt.backbone_for(models.get_model(args.arch), ckpt.read(args.pretrained), args.pretrained, args.arch)
    return train, val


def check_source(args):
    """Refuses a run that has no weights to begin with; --resume auto may have found none."""
    if args.evaluate and not args.resume:
        raise ValueError("--evaluate needs --resume with a checkpoint of this script; --pretrained has no classifier")
    if not args.pretrained and not args.resume:
        raise ValueError(
            "no --pretrained and no --resume with a checkpoint; give one, or --pretrained none for a random encoder"
        )


class Classifier(torch.nn.Linear):
    """The `fc` that trains: in float32, whatever the frozen backbone runs in."""

    def forward(self, features):
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(at_least_fp32(features))


def build(args, classes, device=None):
    """A frozen network with a new `fc`, and the optimizer of that `fc`."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(args.seed)
        model = models.get_model(args.arch, num_classes=classes)
        model.fc = Classifier(model.fc.in_features, classes)
        torch.nn.init.normal_(model.fc.weight, std=0.01)
        torch.nn.init.zeros_(model.fc.bias)
    model.requires_grad_(False).fc.requires_grad_(True)
    model.eval().to(device, memory_format=torch.channels_last)
    if args.compile:
        model.compile(dynamic=False)
    optimizer = (LARS if args.lars else torch.optim.SGD)(
        model.fc.parameters(), args.init_lr, args.momentum, weight_decay=args.weight_decay
    )
    return model, optimizer


@explained
def train(device, args, run, train_folder, val_folder):
    """One process of a run."""
    args.seed, args.resume = from_rank_0((args.seed, args.resume))
    resume.check_same_options(args)
    torch.backends.cudnn.benchmark = True
    set_precision(args.precision)
    model, optimizer = build(args, len(val_folder.classes), device)
    (start_epoch, start), best_acc1 = load(args, model, optimizer)
    if args.start_epoch not in (None, start_epoch):
        start_epoch, start = args.start_epoch, 0
    batch = args.total_batch // run.world
    net = data_parallel(model, device, lambda net: loss_of_noise(net, batch, args, device))
    workers = options.workers_a_process(args, run)
    val_loader = validation_loader(val_folder, args.crop_size, batch, workers)
    if rank() == 0:
        options.announce(args, run, device, (start_epoch, start), workers)
    if args.evaluate:
        watched = partial(watchdog.at, 0, phase=watchdog.STEP)
        validate(model, val_loader, len(val_folder), args, device, watched)
        return

    views = asym_aug_plan(baseline_plan(args.crop_size)).target  # crop and flip
    loader = training_loader(
        *(train_folder, views, args.total_batch, args.seed, workers),
        drop_last=False,
        augment_on=args.augment_on,
        substitutes=options.substitutes(args, train_folder),
    )
    frozen = frozen_tensors(model)

    def save(names, epoch, step=0):
        """Writes a checkpoint of `epoch` epochs and `step` steps under each of `names`."""
        if rank() == 0:
            more = {"step": step, "best_acc1": best_acc1, "processes": run.world}
            checkpoint = ckpt.of_run(epoch, model, optimizer, resume.result_options(args), **more)
            books.saver.save(checkpoint, *(os.path.join(args.output_dir, name) for name in names))

    with Books(args, device, (start_epoch, start), loader, optimizer, partial(save, [LAST])) as books:
        books.check_space(model.state_dict(), 3 - len(checkpoints(args)))
        for book in books.epochs():
            set_lr(optimizer, lr := cosine_lr(args.init_lr, book.epoch, args.epochs))
            train_epoch(net, optimizer, views, book, args, device)
            acc1 = validate(model, val_loader, len(val_folder), args, device, book.validation_step_done)
            if book.epoch == start_epoch:
                check_frozen(frozen, model)
            best, best_acc1 = acc1 > best_acc1, max(acc1, best_acc1)
            book.epoch_done(lr=lr, val_acc1=acc1)
            save([*[BEST] * best, CHECKPOINT], book.epoch + 1)


def checkpoints(args):
    """The paths of the checkpoints that a run of this --output-dir may be continued from."""
    paths = (os.path.join(args.output_dir, name) for name in (CHECKPOINT, LAST))
    return [path for path in paths if os.path.exists(path)]


def load(args, model, optimizer):
    """Loads --resume, else the backbone of --pretrained; returns ((epochs, steps of the next) done, best Acc@1)."""
    if args.resume:
        checkpoint = ckpt.read_on_all_ranks(args.resume)
        resume.restore(checkpoint, model, optimizer)
        if args.pretrained and rank() == 0:
            print(f"note: --pretrained {args.pretrained!r} is not used, the backbone is the resumed checkpoint's")
        return resume.place_of(checkpoint), checkpoint.get("best_acc1", 0.0)
    if args.pretrained == "none":
        if rank() == 0:
            print("pretrained: none, this probes a random encoder")
        return (0, 0), 0.0
    backbone = ckpt.backbone_for(model, ckpt.read_on_all_ranks(args.pretrained), args.pretrained, args.arch)
    model.load_state_dict(backbone, strict=False)
    if rank() == 0:
        print(f"pretrained: {len(backbone)} tensors of {args.pretrained!r}, all of the backbone but fc")
    return (0, 0), 0.0


def train_epoch(net, optimizer, views, book, args, device):
    """An epoch's steps, of which `book` keeps the books."""
    net.eval()  # all of it: the backbone's BN must not move, and only `fc` trains
    for i, ((images,), target) in book.steps(finisher(views, args.augment_on, device)):
        with autocast(device, args.precision):
            output = net(images)
        loss = F.cross_entropy(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        book.step_done(i, len(target), loss.detach(), *accuracy(output, target, topk=(1, 5)))


def loss_of_noise(net, batch, args, device):
    """The sum of the outputs for random images, as many as in a real batch where kernels are made or chosen for it."""
    n = batch if args.compile or device.type == "cuda" else 1
    with autocast(device, args.precision):
        return net(torch.randn(n, 3, args.crop_size, args.crop_size, device=device)).sum()


@torch.no_grad()
def validate(model, loader, images, args, device, step_done):
    """Classifies every validation image once, over all processes; returns Acc@1 in percent, exact on every rank.

    Args:
        loader: of this process's share. images: of all shares. step_done: called as `step_done(i)` after step `i`,
            equally often on every rank.
    """
    model.eval()
    watch, sums = Stopwatch(), torch.zeros(3, dtype=torch.float64, device=device)  # of loss, hits at 1, hits at 5
    progress = ProgressMeter(len(loader), [watch.batch_time, watch.data_time], "Test: ")
    common = math.ceil(images // world_size() / loader.batch_size)  # steps that every rank has
    for i, (view, target) in enumerate(watch.waiting(loader)):
        with autocast(device, args.precision):
            output = model(normalize_images(view.to(device, non_blocking=True)))
        target = target.to(device, non_blocking=True)
        hits = [hit.sum() for hit in correct(output, target, topk=(1, 5))]
        sums += torch.stack([F.cross_entropy(output, target, reduction="sum").double(), *hits])
        watch.step_ended()
        if rank() == 0 and i % args.print_freq == 0:
            progress.display(i)
        if i < common:
            step_done(i)
    loss, acc1, acc5 = (all_sum(sums) / images).tolist()
    acc1, acc5 = 100 * acc1, 100 * acc5
    if rank() == 0:
        say(f" * Acc@1 {acc1:.3f} Acc@5 {acc5:.3f} Loss {loss:.4f}")
    return acc1


def frozen_tensors(model):
    """Copies of everything but `fc`, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("fc.")}


def check_frozen(frozen, model):
    """Raises RuntimeError where a tensor of `frozen` is no longer what it was."""
    now = model.state_dict()
    for name, tensor in frozen.items():
        if not torch.equal(now[name], tensor):
            raise RuntimeError(f"{name} changed while only fc trains; the linear classification is not valid")


if __name__ == "__main__":
    exit_on_signals()
    main()
