#!/usr/bin/env python
"""Linear classification: trains a new classifier `fc` on the frozen backbone that main_moco.py has pretrained."""

if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import math
from functools import partial

import torch
import torch.nn.functional as F

from moco.asymmetry.asym_aug import asym_aug_plan
from moco.data.file_list import check_same_classes
from moco.data.image_places import labelled_images
from moco.data.prefetch_to_device import finisher
from moco.engine import watchdog
from moco.engine.architectures import IMAGENET, make_network
from moco.engine.checkpoint_names import CheckpointNames
from moco.engine.checkpoint_resume import check_resume
from moco.engine.command_line import Parser
from moco.engine.meters import accuracy
from moco.engine.pretrained_backbone import check_backbone, load_backbone
from moco.engine.shared_flags import add_shared
from moco.engine.size_checks import check_views
from moco.engine.startup_checks import cap_batch, check_training, parse_and_check, prepare_output
from moco.engine.training_run import start_run
from moco.engine.training_statistics import gradient_norm
from moco.evaluation.frozen_backbone import check_frozen, frozen_tensors
from moco.evaluation.validation_accuracy import validate
from moco.loader import central_loader, training_loader
from moco.optim import LARS, cosine_lr, set_lr
from moco.precision import at_least_fp32, autocast
from moco.views.augmentation_recipes import baseline_plan


def build_parser():
    parser = Parser(__doc__, example="--lars --pretrained checkpoint__0099.pth.tar /path/to/imagenet")
    lr_help = "learning rate for a batch of 256; it is multiplied by --batch-size / 256"
    add_shared(parser, epochs=90, batch_size=4096, lr=0.1, weight_decay=0.0, stem=None, lr_help=lr_help)
    help = "checkpoint with the pretrained backbone, or the word none for random weights"
    parser.add_argument("--pretrained", metavar="FILE", help=help)
    parser.add_argument("--lars", action="store_true", help="train with LARS instead of SGD")
    help = "only validate the classifier of the checkpoint given by --resume"
    parser.add_argument("-e", "--evaluate", action="store_true", help=help)
    return parser


def main(argv=None):
    args, launch, (names, train_folder, val_folder) = parse_and_check(build_parser(), prepare, argv)
    start_run(train, args, launch, names, train_folder, val_folder)


def prepare(args, launch):
    """The checks of this script; returns its CheckpointNames and the ImageFolders of train and val.

    With --evaluate, the train folder is None.
    """
    check_source(args.evaluate, args.resume, args.pretrained)
    val = labelled_images(args.data, "val")
    train = None if args.evaluate else labelled_images(args.data, "train")
    if train is not None:
        cap_batch(args, launch, len(train))
    args.init_lr = args.lr * args.batch_size / 256
    names = CheckpointNames(args.output_dir, "checkpoint", numbered=False, best="model_best")
    build_trial = partial(build, args, len(val.classes))
    if args.evaluate:
        check_resume(args, launch, build_trial, names, any_options=True)
    else:
        check_same_classes(train, val)
        place = check_training(args, launch, train, names, build_trial)
    check_source(args.evaluate, args.resume, args.pretrained)
    check_backbone(args.pretrained, args, launch)
    views = baseline_plan(args.crop_size).target.full
    stem = args.stem or IMAGENET  # a node without rank 0 does not know it
    check_views(views, args.arch, args.batch_size, launch.local, args.gpu, stem)
    if not args.evaluate:
        prepare_output(args, names, launch, place)
    return names, train, val


def check_source(evaluate, resume, pretrained):
    """Raises ValueError if a run has no initial weights. It is called again after --resume auto is resolved."""
    if evaluate and not resume:
        raise ValueError(
            "--evaluate needs --resume with a checkpoint of this script; one for --pretrained has no classifier"
        )
    if not pretrained and not resume:
        raise ValueError(
            "a backbone is needed; give --pretrained FILE, --resume FILE, or --pretrained none for random weights"
        )


class Classifier(torch.nn.Linear):
    """The `fc` that is trained: in float32, whatever the precision of the frozen backbone."""

    def forward(self, features):
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(at_least_fp32(features))


def build(args, classes, device=None):
    """A frozen network in eval mode with a new `fc` for that number of classes, and the optimizer of `fc`."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(args.seed)
        model = make_network(args.arch, args.stem, classes)
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


def introduction(model, classes, args):
    """Loads the backbone; yields the lines that say what is going to be trained."""
    yield f"loss of a blind guess: ln({classes}) = {math.log(classes):.4f}"
    yield from load_backbone(args.pretrained, args, model)


def train(run, train_folder, val_folder):
    """Trains the classifier in one process of the run."""
    args = run.args
    views = asym_aug_plan(baseline_plan(args.crop_size)).target.full  # crop and flip
    model, optimizer = build(args, len(val_folder.classes), run.device)
    run.announce(filter(None, (train_folder, val_folder)), *introduction(model, len(val_folder.classes), args))
    noise = partial(noise_output, args.crop_size, args.precision)
    net = run.prepare(model, optimizer, noise, trains=not args.evaluate)
    batch = args.total_batch // run.launch.world
    val_loader = central_loader(val_folder, args.crop_size, batch, run.workers, run.room)
    how = run.device, args.precision, args.print_freq, run.fixed_batch
    validate_now = partial(validate, model, val_loader, len(val_folder), *how)
    if args.evaluate:
        model.requires_grad_(False)  # so that --compile makes no graph for training
        watchdog.at_start("starting the data workers")
        validate_now(partial(watchdog.at, 0, phase=watchdog.STEP))
        return
    frozen = frozen_tensors(model)
    options = {"drop_last": False, **run.loader_options(train_folder)}
    loader = training_loader(train_folder, views, args.total_batch, args.seed, run.workers, **options)
    for epoch in run.epochs(loader, finisher(views, args.augment_on, run.device)):
        set_lr(optimizer, cosine_lr(args.init_lr, epoch.number, args.epochs))
        net.eval()  # so that the backbone's batch normalisation does not change
        for _, (images,), labels in epoch.steps():
            epoch.report(*train_step(net, optimizer, images, labels, args.precision, epoch.prints))
        acc1 = validate_now(epoch.report_validation)
        if epoch.is_first:
            check_frozen(frozen, model)
        epoch.save(acc1)
    run.finish()


def train_step(net, optimizer, images, labels, precision, prints=False):
    """One update of `fc`; returns loss, Acc@1 and Acc@5 (percent) of this process's share, scalars on the device.

    If `prints`, it also returns the norm of the gradients.
    """
    with autocast(images.device, precision):
        output = net(images)
    loss = F.cross_entropy(output, labels)
    optimizer.zero_grad()
    loss.backward()
    norm = (gradient_norm(net),) if prints else ()
    optimizer.step()
    return loss.detach(), *accuracy(output, labels, topk=(1, 5)), *norm


def noise_output(size, precision, net, n):
    """The sum of the outputs for n images of Gaussian noise, `size` x `size` pixels; a scalar tensor."""
    device = next(net.parameters()).device
    with autocast(device, precision):
        return net(torch.randn(n, 3, size, size, device=device)).sum()


if __name__ == "__main__":
    main()
