"""Weighted k-nearest-neighbour classification, as in InstDisc (arXiv 1805.01978, section 3.4) and DINO (2104.14294).

Each validation image is classified by the k training images with the most similar features: each of them votes for its
class with the weight exp(cosine similarity / T). The training features are not kept. They stream past the validation
features, and only the k best of each are remembered.
"""

import torch
import torch.nn.functional as F

from moco.data.passed_over_files import plural
from moco.distributed import all_gather, copy_to_device, from_all, world_size
from moco.evaluation.features import encode, encode_all
from moco.precision import without_tf32

K, T = 20, 0.07  # usual number of neighbours; temperature of the votes
CELLS = 2**22  # similarities that are computed at a time, at 24 bytes each
NOTHING = torch.iinfo(torch.int64).min  # the key of a neighbour that is not found yet
LOW = 2**32 - 1  # the lower half of a key


class NearestNeighbours:
    """Finds the k most similar items of a stream for each query.

    If two items are equally similar, the one with the lower index comes first.

    Args:
        queries: V x d. Queries and items are compared by cosine similarity, in float32. k: number of neighbours.
    """

    def __init__(self, queries, k):
        self.queries, self.k = F.normalize(queries, dim=1), k
        self.keys = torch.full((len(queries), k), NOTHING, device=queries.device)

    def add(self, indices, features):
        """Compares the queries with further items: n indices (long, 0 to 2^32 - 1) and n x d features."""
        indices, features = copy_to_device(indices, features.device), F.normalize(features, dim=1)
        with without_tf32():
            for queries, best in self._parts(self.k + len(features)):
                keys = torch.cat([best, _keys(queries @ features.T, indices)], dim=1)
                best.copy_(keys.topk(self.k, dim=1).values)

    def merge_ranks(self):
        """Makes every rank know the neighbours among the items of all ranks, whose queries must be the same."""
        for _, best in self._parts(self.k * world_size()):
            keys = all_gather(best[None]).transpose(0, 1).flatten(1)  # rows x (ranks * k)
            best.copy_(keys.topk(self.k, dim=1).values)

    def result(self):
        """The neighbours, the most similar first.

        Returns:
            (similarities, indices): V x k, float32 and long. If there were fewer than k items, those that are missing
            have the similarity -inf and the index -1.
        """
        missing, high = self.keys == NOTHING, self.keys >> 32
        similarities = high.abs().clamp_max(2**31 - 1).int().view(torch.float32).copysign(high.float())
        return similarities.masked_fill(missing, -torch.inf), (LOW - (self.keys & LOW)).masked_fill(missing, -1)

    def count_hits(self, labels, targets, classes, ks):
        """Classifies the queries by the votes of their neighbours.

        Args:
            labels: of all items, by index, long. targets: the classes of the queries, V, long.
            classes: their number. ks: the numbers of neighbours that vote, each at most `self.k`.

        Returns:
            For each k, the number of queries whose class is the first, and of those whose class is among the first
            five: len(ks) x 2, float64.
        """
        similarities, neighbours = self.result()
        labels = labels[neighbours]  # a missing neighbour has some label, but no weight
        rows = max(1, CELLS // classes)
        found = torch.zeros(len(ks), 2, dtype=torch.float64, device=targets.device)
        for similarity, label, target in zip(*(x.split(rows) for x in (similarities, labels, targets)), strict=True):
            for row, k in zip(found, ks, strict=True):
                scores = votes(similarity, label, classes, k)
                row += torch.stack([hits(scores, target, n).sum() for n in (1, 5)])
        return found

    def _parts(self, columns):
        """Yields (queries, their keys) in parts, so that columns x rows of a part are at most CELLS."""
        rows = max(1, CELLS // columns)
        return zip(self.queries.split(rows), self.keys.split(rows), strict=True)


def _keys(similarities, indices):
    """Integers that are all different, and larger for a higher similarity or, if it is equal, for a lower index.

    Args:
        similarities: V x n, float32. indices: n.
    """
    bits = similarities.view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))  # in the order of the floats; 0 for -0
    return (ordered << 32) + (LOW - indices)


def votes(similarities, labels, classes, k):
    """The score of each class: the sum of exp(similarity / T) over the neighbours that belong to it.

    Args:
        similarities, labels: of the neighbours, V x (k or more), the most similar first. classes: their number.

    Returns:
        V x classes, float64.
    """
    weights = (similarities[:, :k].double() / T).exp()
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels[:, :k], weights)


def hits(scores, targets, n):
    """Whether each target is among the n classes with the highest scores.

    If scores are equal, the class with the lower number comes first. A class without votes is never a hit.

    Args:
        scores: V x classes. targets: V, long.
    """
    own, numbers = scores.gather(1, targets[:, None]), torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (numbers < targets[:, None]))
    return (before.sum(dim=1) < n) & (own[:, 0] > 0)


def knn_accuracy(network, dim, val_loader, train_loader, ks, device, precision=None, step_done=lambda images: None):
    """Classifies the validation images by their nearest training images, over all processes.

    Args:
        network, device, precision, step_done: as for `encode`. dim: number of features.
        val_loader, train_loader: each a `central_loader`; the folders must have the same classes.
        ks: the numbers of neighbours.

    Returns:
        (accuracies, left_out): for each k, (Acc@1, Acc@5) in percent, exact, the same on every rank; and the number of
        images that could not be decoded.
    """
    val, train = val_loader.dataset.folder, train_loader.dataset.folder
    queries, features = encode_all(network, dim, val_loader, device, precision, step_done)
    nearest, seen = NearestNeighbours(features, max(ks)), 0
    for indices, features in encode(network, train_loader, device, precision, step_done):
        nearest.add(indices, features)
        seen += len(indices)
    nearest.merge_ranks()
    left_out = len(val) - len(queries) + len(train) - sum(from_all(seen))
    labels, targets = (copy_to_device(torch.from_numpy(folder.labels).long(), device) for folder in (train, val))
    hit = nearest.count_hits(labels, targets[copy_to_device(queries, device)], len(train.classes), ks)
    return [tuple(row) for row in (100 * hit / max(len(queries), 1)).tolist()], left_out


def left_out_line(images):
    """The line of the log about images that can't be decoded; `images` is their number."""
    return f"note: the kNN classification leaves out {plural(images, 'image')} that can't be decoded"


def accuracy_line(k, acc1, acc5):
    """The line of the log."""
    return f" * kNN Acc@1 {acc1:.3f} Acc@5 {acc5:.3f} k {k}"
