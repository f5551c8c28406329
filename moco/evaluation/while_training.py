"""What is measured at the end of some epochs of a pretraining: the kNN accuracy and the variance of encodings."""

from itertools import chain

from moco.evaluation.knn_while_training import KnnWhileTraining, add_knn_flags
from moco.evaluation.variance_while_training import VarianceWhileTraining, add_variance_flag


def add_evaluation_flags(parser):
    """Adds --knn-every, --variance-every and their further flags to `parser`."""
    add_knn_flags(parser)
    add_variance_flag(parser)


class EvaluationsWhileTraining:
    """Both measurements. The training does not change.

    Args:
        run: the Run. plan: its ViewPlan. folder: the ImageFolder of the pretraining.
        folders_of_knn: as `knn_folders` returns them.
    """

    def __init__(self, run, plan, folder, folders_of_knn):
        self.parts = KnnWhileTraining(run, folders_of_knn), VarianceWhileTraining(run, plan, folder)

    def introduction(self):
        """Yields a line for each measurement that will be made."""
        return chain.from_iterable(part.introduction() for part in self.parts)

    def measure(self, encoder, epoch):
        """Call before the epoch's checkpoint; arguments and result, a dict, as of the two `measure`."""
        return {name: figure for part in self.parts for name, figure in part.measure(encoder, epoch).items()}
