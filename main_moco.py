#!/usr/bin/env python
"""Pretraining: MoCo v2 and the five asymmetric designs of "On the Importance of Asymmetry for Siamese Representation
Learning" (arXiv 2204.00613). Each design has a flag, such as --enable-multicrop. --design puts it on either side."""

if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

from functools import partial

import torch

from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.mean_encoding import mean_encoding_plan
from moco.asymmetry.multicrop import FULL_SCALE, multicrop_plan
from moco.asymmetry.scalemix import scalemix_plan
from moco.builder import MoCo
from moco.data.image_places import training_images
from moco.data.prefetch_to_device import finisher
from moco.engine import startup_report
from moco.engine.architectures import make_network
from moco.engine.checkpoint_names import CheckpointNames
from moco.engine.command_line import Parser, number
from moco.engine.design_flags import add_design_flags, designs_of, in_words
from moco.engine.end_report import knn_classification, linear_classification
from moco.engine.meters import accuracy
from moco.engine.pretrained_backbone import check_backbone, load_backbone
from moco.engine.recipe_flag import recipe_of
from moco.engine.shared_flags import add_shared
from moco.engine.size_checks import check_views, settle_mini_size
from moco.engine.startup_checks import check_model, check_training, parse_and_check, prepare_output
from moco.engine.training_run import start_run
from moco.engine.training_statistics import LearningMonitor, contrast_figures
from moco.evaluation.knn_while_training import knn_folders
from moco.evaluation.while_training import EvaluationsWhileTraining, add_evaluation_flags
from moco.loader import training_loader
from moco.loss import blind_guess, contrastive_loss, noise_loss
from moco.optim import cosine_lr, set_lr, sgd
from moco.precision import autocast
from moco.views.augmentation_recipes import baseline_plan


def build_parser():
    parser = Parser(__doc__, example="--enable-multicrop --output-dir runs/multicrop /path/to/imagenet")
    add_shared(parser, epochs=100, batch_size=256, lr=0.03, weight_decay=1e-4, stem="imagenet")
    some, positive = number(int, 1), number(float, 0, exclusive=True)
    add = parser.add_argument
    add("--mini-crop-size", metavar="PX", type=some, help="side of the small views (default: 96/224 of --crop-size)")
    add("--tag", default="", help="text inserted in the checkpoints' file names: checkpoint_TAG_EPOCH.pth.tar")
    help = "checkpoint whose backbone both encoders start from, or weights of torchvision (default: random weights)"
    add("--init-from", metavar="FILE", help=help)
    add("--keep", metavar="N", type=some, help="keep only the checkpoints of the newest N epochs (default: all)")

    add = parser.add_argument_group("MoCo").add_argument
    add("--moco-dim", metavar="N", default=128, type=some, help="feature dimension of the keys and queries")
    add("--moco-k", metavar="N", default=65536, type=some, help="number of keys in the queue")
    add("--moco-m", metavar="M", default=0.999, type=number(float, 0, 1), help="momentum of the target encoder")
    add("--moco-t", metavar="T", default=0.2, type=positive, help="softmax temperature")
    help = "batch-norm groups per process; one process with N groups computes what N GPUs would"
    add("--bn-splits", metavar="N", default=1, type=some, help=help)
    add_design_flags(parser)
    add_evaluation_flags(parser)
    return parser


def main(argv=None):
    args, launch, (names, *folders) = parse_and_check(build_parser(), prepare, argv, least=2)  # BN needs 2 images
    start_run(train, args, launch, names, *folders)


def prepare(args, launch):
    """The checks of this script; returns its CheckpointNames and the ImageFolders of the training and of kNN."""
    check_model(args, launch)
    args.mini_crop_size = settle_mini_size(args.mini_crop_size, args.crop_size, "multicrop" in designs_of(args))
    check_views(view_plan(args).views, args.arch, args.batch_size, launch.local, args.gpu, args.stem)
    names = CheckpointNames(args.output_dir, f"checkpoint_{args.tag}", numbered=True, keep=args.keep)
    folder = training_images(args.data)
    knn = knn_folders(args, launch, folder)
    place = check_training(args, launch, folder, names, partial(build, args))
    check_backbone(args.init_from, args, launch)
    prepare_output(args, names, launch, place)
    return names, folder, *knn


def view_plan(args):
    """The views of source and target: those of the baseline, changed by each design that is on."""
    recipe, designs = recipe_of(args), designs_of(args)
    plan = baseline_plan(args.crop_size, **recipe)
    if side := designs.get("multicrop"):
        plan = multicrop_plan(plan, args.mini_crop_size, recipe.get("scale", FULL_SCALE), side)
    if side := designs.get("scalemix"):
        plan = scalemix_plan(plan, side)
    if side := designs.get("asym_aug"):
        plan = asym_aug_plan(plan, side)
    if side := designs.get("mean_encoding"):
        plan = mean_encoding_plan(plan, side)
    return plan


def build(args, device=None):
    """The model, and its optimizer. The optimizer has all parameters, so that published states fit."""
    designs = designs_of(args)
    model = MoCo(
        partial(make_network, args.arch, args.stem),
        *(args.moco_dim, args.moco_k, args.moco_m, args.moco_t, "asym_bn" in designs),
        seed=args.seed,
        asym_bn_group=args.asym_bn_group,
        bn_splits=args.bn_splits,
        asym_bn_on=designs.get("asym_bn", "target"),
        mean_source=view_plan(args).source.averaged,
    ).to(device, memory_format=torch.channels_last)
    if args.compile:
        for encoder in (model.encoder_q, model.encoder_k):
            encoder.compile(dynamic=False)
    return model, sgd(model.parameters(), args.lr, args.momentum, args.weight_decay)


def train(run, folder, *folders_of_knn):
    """Trains in one process of the run."""
    args = run.args
    plan = view_plan(args)
    guess = blind_guess(args.moco_k, len(plan.mini))
    evaluations = EvaluationsWhileTraining(run, plan, folder, folders_of_knn)
    model, optimizer = build(args, run.device)
    loaded = load_backbone(args.init_from, args, model.encoder_q, model.encoder_k, flag="--init-from")
    lines = *introduction(run, plan, guess), *loaded, *evaluations.introduction()
    run.announce([folder, *folders_of_knn], *lines)
    net = run.prepare(model, optimizer, partial(noise_loss, plan, args.precision), fewest=2 * args.bn_splits)
    options = run.loader_options(folder)
    loader = training_loader(folder, plan.views, args.total_batch, args.seed, run.workers, **options)
    monitor = LearningMonitor(guess, args.moco_k / args.total_batch)
    for epoch in run.epochs(loader, finisher(plan.views, args.augment_on, run.device), monitor):
        set_lr(optimizer, cosine_lr(args.lr, epoch.number, args.epochs))
        net.train()
        for step, images, _ in epoch.steps():
            epoch.report(*train_step(net, optimizer, run.scaler, plan, images, step, args.precision, epoch.prints))
        epoch.save(figures=evaluations.measure(model.encoder_q, epoch))
    run.finish(knn_classification, linear_classification)


def train_step(net, optimizer, scaler, plan, images, step, precision, prints=False):
    """One update of the weights.

    Args:
        plan: the ViewPlan. images: a batch of each of its views. step: the global step. precision: of --precision.
        prints: whether to compute the `contrast_figures`, too.

    Returns:
        Loss, Acc@1 and Acc@5 (percent) of this process's share, scalar tensors on the device that no one waits for;
        then, if `prints`, the two `contrast_figures`.
    """
    with autocast(images[0].device, precision):
        logits, labels = net(**plan.split(images), step=step)
        loss = contrastive_loss(logits, labels, plan.source.encodings)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    figures = contrast_figures(net, logits, scaler) if prints else ()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), *accuracy(logits[0], labels[0], topk=(1, 5)), *figures


def introduction(run, plan, guess):
    """The lines that say what is going to be trained; `guess` is the loss of a blind guess."""
    args, designs = run.args, designs_of(run.args)
    yield f"designs: {in_words(designs) or 'none, the MoCo v2 baseline'}"
    if "asym_bn" in designs and run.launch.world * args.bn_splits == 1:
        yield "note: AsymBN changes nothing here, since batch normalisation sees the whole batch anyway"
    yield from (plan, run.batchnorm_report())
    yield f"loss of a blind guess: {'2 ' if plan.mini else ''}ln(K + 1) = {guess:.4f}"
    yield from startup_report.queue_notes(args.moco_k, args.images)


if __name__ == "__main__":
    main()
