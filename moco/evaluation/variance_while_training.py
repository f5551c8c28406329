"""--variance-every: the intra-image variance of both sides' recipes while training. The training does not change."""

import torch

from moco.distributed import rank
from moco.engine.command_line import number
from moco.engine.design_flags import designs_of
from moco.engine.progress import Progress
from moco.evaluation.variance import Recipe, WholeBatches, variances, view_loader, whole_batches
from moco.pipe_safe_print import say

IMAGES, VIEWS = 256, 8


def add_variance_flag(parser):
    """Adds the flag to `parser`."""
    add = parser.add_argument_group("variance of encodings while training").add_argument
    help = (
        f"epochs between two measurements of the intra-image variance of both sides' recipes, with {VIEWS} views of "
        f"{IMAGES} images (default: none)"
    )
    add("--variance-every", metavar="N", type=number(int, 1), help=help)


def side_recipes(plan, designs):
    """What each side encodes: a dict from source, target, and source_small, target_small if there are such views.

    As in `moco.tools.variance`, each of MeanEnc's two views is normalised in a batch of its own.

    Args:
        plan: a ViewPlan. designs: dict from name to side, as of `designs_of`.
    """
    recipes = {}
    for name, side in (("source", plan.source), ("target", plan.target)):
        synchronised = designs.get("asym_bn") in (name, "both")
        recipes[name] = Recipe(side.full, synchronised)
        if side.mini:
            recipes[f"{name}_small"] = Recipe(side.mini[:1], synchronised)
    return recipes


def batches_for(images, total_batch, groups):
    """(images, batch, batch-norm groups) of a measurement whose groups are as large as those of the training.

    If there are too few images for that, the groups are smaller.

    Args:
        images: how many there are. total_batch: of the training, over all processes. groups: batch-norm groups of it.
    """
    most = min(IMAGES, images)
    size = min(total_batch // groups, most)
    groups = min(groups, most // size)
    return *whole_batches(most, size * groups), groups


class VarianceWhileTraining:
    """Measures the variance at the end of every Nth epoch and of the last one.

    The images and their views are the same each time. The encoder is the current `encoder_q`, for the target's recipe,
    too.

    Args:
        run: the Run. plan: its ViewPlan. folder: the ImageFolder of the pretraining.
    """

    def __init__(self, run, plan, folder):
        args = self.args = run.args
        self.run, self.folder = run, folder
        self.recipes = side_recipes(plan, designs_of(args))
        groups = run.launch.world * args.bn_splits
        self.images, self.batch, self.splits = batches_for(len(folder), args.total_batch, groups)

    def introduction(self):
        """Yields a line that says what will be measured, if something will be."""
        if n := self.args.variance_every:
            when = "after each epoch" if n == 1 else f"after every {n} epochs and after the last one"
            of = f"{self.images} images, {VIEWS} views of each, in batch-norm groups of {self.batch // self.splits}"
            yield f"the variance of both sides' recipes is measured {when}: {of}"

    def measure(self, encoder, epoch):
        """Call before the epoch's checkpoint. A run that is stopped here repeats the measurement after the resume.

        Args:
            encoder: a network whose `fc` is the projector; a copy of it is used. epoch: the Epoch.

        Returns:
            dict of `variance_source` and `variance_target`, in hundredths, and `variance_source_small` and
            `variance_target_small` if there are such views; {} in epochs without a measurement.
        """
        run, args = self.run, self.args
        if not epoch.is_due(args.variance_every):
            return {}
        epoch.save_before_evaluation()
        batches = WholeBatches(len(self.folder), self.images, self.batch, VIEWS, args.seed)
        how = args.augment_on, args.on_bad_image == "skip", run.room
        progress = Progress("variance", len(batches) * self.batch, "views", error=False)

        def step_done(images):
            progress.add(images)
            epoch.report_evaluation()

        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number that a derived model could miss
            loader = view_loader(self.folder, self.recipes, batches, run.workers, *how)
            how = args.augment_on, self.splits, run.device, args.precision, step_done
            found = variances(encoder, args.moco_dim, self.recipes, loader, *how)
        if rank() == 0:
            say(f" * Variance {' '.join(f'{name} {one.variance:.3f}' for name, one in found.items())}")
        return {f"variance_{name}": one.variance for name, one in found.items()}
