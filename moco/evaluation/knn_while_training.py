"""--knn-every: the kNN accuracy of the source encoder's backbone while it is trained. The training does not change."""

from moco.distributed import copy_from_rank_0, rank
from moco.engine.architectures import meta_network
from moco.engine.command_line import number
from moco.engine.progress import Progress
from moco.engine.size_checks import process_memory
from moco.evaluation.frozen_backbone import freeze, frozen_copy
from moco.evaluation.knn import K, accuracy_line, knn_accuracy, left_out_line
from moco.evaluation.knn_images import check_features, check_k, labelled_splits
from moco.loader import central_loader
from moco.pipe_safe_print import say


def add_knn_flags(parser):
    """Adds the flags to `parser`."""
    add = parser.add_argument_group("kNN accuracy while training").add_argument
    some = number(int, 1)
    add("--knn-every", metavar="N", type=some, help="epochs between two kNN classifications (default: none)")
    help = "folder with labelled images in train/ and val/ for the kNN classification (default: that of the training)"
    add("--knn-data", metavar="DIR", help=help)
    add("--knn-k", metavar="K", default=K, type=some, help="number of nearest neighbours that vote")


def knn_folders(args, launch, folder):
    """The ImageFolders (val, train) for the kNN classification; () without --knn-every. Sets `args.knn_images`.

    Args:
        args: the options. launch: a Launch. folder: the ImageFolder of the pretraining.

    Raises:
        ValueError: --knn-every is given, and the images or --knn-k do not fit.
    """
    args.knn_images = []
    if args.knn_every is None:
        return ()
    try:
        val, train = labelled_splits(args.knn_data or args.data, None if args.knn_data else folder)
    except (OSError, ValueError) as error:
        way_out = "" if args.knn_data else "; or give other images by --knn-data"
        raise ValueError(
            f"{'--knn-data' if args.knn_data else '--knn-every'} needs labelled images: {error}{way_out}"
        ) from error
    check_k([args.knn_k], train, "--knn-k")
    check_features(val, freeze(meta_network(args.arch, args.stem))[1], process_memory(launch.local, args.gpu))
    args.knn_images = [len(val), len(train)]
    return val, train


class KnnWhileTraining:
    """Classifies by kNN at the end of every Nth epoch and of the last one.

    Args:
        run: the Run. folders: as `knn_folders` returns them.
    """

    def __init__(self, run, folders):
        self.run, self.folders = run, folders

    def introduction(self):
        """Yields a line that says what will be classified, if something will be."""
        for val, train in [self.folders] if self.folders else ():
            args, n = self.run.args, self.run.args.knn_every
            when = "after each epoch" if n == 1 else f"after every {n} epochs and after the last one"
            what = f"images of {val.root!r} by those of {train.root!r}"
            yield f"kNN (k = {args.knn_k}) classifies {what} {when}"

    def measure(self, encoder, epoch):
        """Call before the epoch's checkpoint. A run that is stopped here repeats the classification after the resume.

        Args:
            encoder: a network with an `fc`; a copy of it is evaluated. epoch: the Epoch.

        Returns:
            dict of `knn_acc1` and `knn_acc5`, in percent; {} in epochs without a classification.
        """
        run, args = self.run, self.run.args
        if not epoch.is_due(args.knn_every):
            return {}
        epoch.save_before_evaluation()
        batch, skip_bad = args.total_batch // run.launch.world, args.on_bad_image == "skip"
        loaders = [
            central_loader(folder, args.crop_size, batch, run.workers, run.room, "kNN", skip_bad, persistent=False)
            for folder in self.folders
        ]
        progress = Progress("kNN", sum(len(loader.sampler) for loader in loaders), "images", error=False)

        def step_done(images):
            progress.add(images)
            epoch.report_evaluation()

        network, dim = frozen_copy(encoder)
        copy_from_rank_0(network.buffers())  # those of batch normalisation differ; rank 0's are in the checkpoint
        how = [args.knn_k], run.device, args.precision, step_done
        ((acc1, acc5),), left_out = knn_accuracy(network, dim, *loaders, *how)
        if rank() == 0:
            say(accuracy_line(args.knn_k, acc1, acc5))
            if left_out:
                say(left_out_line(left_out))
        return {"knn_acc1": acc1, "knn_acc5": acc5}
