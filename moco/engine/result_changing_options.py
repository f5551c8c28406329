"""Which options change a run's result. A checkpoint stores them, and all ranks must have the same ones."""

from moco.distributed import RanksDiffer, from_all
from moco.engine.design_flags import designs_of

# Flags that may differ between a run and its continuation, because they do not change the result: they name files,
# start processes, or control what is printed and saved. The batch size is compared as the sum over all nodes.
FREE = {
    *("data", "workers", "print_freq", "resume", "force", "output_dir", "tag", "start_epoch", "batch_size"),
    *("multiprocessing_distributed", "nproc", "world_size", "rank", "dist_url", "dist_backend", "gpu"),
    *("pretrained", "evaluate", "fast", "save_every", "keep", "timeout", "on_bad_image", "run", "dry_run"),
    *("notes", "tensorboard", "init_from", "knn_every", "knn_data", "knn_k", "knn_images", "variance_every"),
}
# Options of FREE that must still be equal on all ranks, because they decide which collectives the ranks call.
COMMON = {"print_freq", "save_every", "start_epoch", "evaluate", "on_bad_image", "timeout", "dry_run"}
COMMON |= {"knn_every", "knn_k", "knn_images", "variance_every"}
DEPENDENT = {"asym_bn_group": "asym_bn", "mini_crop_size": "multicrop"}  # no effect if that design is off
LABELS = {  # stored options that are not exactly one flag
    "total_batch": "--batch-size times the nodes",
    "init_lr": "the initial learning rate, --lr times --batch-size / 256,",
    "images": "the number of images",
    "knn_images": "the number of images in val and train of --knn-every",
}


def label(name):
    """The name that messages use for a stored option."""
    return LABELS.get(name, "--" + name.replace("_", "-"))


def shown(value):
    """The value of an option as messages show it; a list as the words of a command line."""
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else value


def result_options(args):
    """Every option that changes a run's result, by name. A checkpoint stores them for the comparison at a resume."""
    idle = {name for name, design in DEPENDENT.items() if design not in designs_of(args)}
    return {name: value for name, value in vars(args).items() if name not in FREE | idle}


def check_same_options(args):
    """Checks that the options that change the result or the collectives are equal on all ranks.

    They can differ by mistake, since each node is started with a command line of its own.

    Raises:
        RanksDiffer: on every rank, if an option differs; the message names it and both values.
    """
    ours = result_options(args) | {name: value for name, value in vars(args).items() if name in COMMON}
    for r, theirs in enumerate(everywhere := from_all(ours)):
        for name, value in everywhere[0].items():
            if theirs.get(name) != value:
                here, there = shown(value), shown(theirs.get(name))
                raise RanksDiffer(
                    f"{label(name)} is {here} on rank 0, but {there} on rank {r}; give the same on every node"
                )
