"""MoCo v2 (arXiv 2003.04297), the baseline of the paper (arXiv 2204.00613): two encoders and a queue of keys.

`MoCo.forward` is Algorithm 1 of MoCo (arXiv 1911.05722). `encoder_q` encodes the source's views and is trained by
gradient descent. `encoder_k` encodes the target's views and is the exponential moving average of `encoder_q`. Each
asymmetric design has its own file in `moco/asymmetry/`. The two designs that change the model, AsymBN and MeanEnc, are
named calls in this file; the paper has both on the target. N is the number of images on this process, B the number on
all processes.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from moco.asymmetry.asym_bn import synchronize_projector
from moco.asymmetry.mean_encoding import mean_encoding
from moco.batchnorm import check_parts, split_batchnorm, views_apart
from moco.distributed import rank, world_size
from moco.precision import at_least_fp32
from moco.shuffle_bn import BatchShuffle
from moco.views.augmentation_recipes import SIDES


class MoCo(nn.Module):
    """Momentum contrast with a projector MLP that has batch normalisation after its first layer.

    Args:
        base_encoder: a callable; `base_encoder(num_classes=dim)` returns a network with a Linear classifier `fc`.
        dim: number of features of a query and of a key (C).
        K: number of keys in the queue.
        m: momentum of the target encoder.
        T: softmax temperature.
        enable_asym_bn: whether to synchronise the batch normalisation of a projector (AsymBN).
        seed: determines the initial weights, the initial queue and the shuffle of each step; it must be equal on every
            rank.
        asym_bn_group: number of batch-norm groups whose statistics AsymBN computes together; None means all groups,
            that is processes times `bn_splits`.
        bn_splits: number of batch-norm groups on this process. Each group is normalised as if it had its own GPU.
        asym_bn_on: whose projector AsymBN synchronises: "source", "target" or "both".
        mean_source: whether the encodings of the source's full-size views are averaged, too (MeanEnc).

    Raises:
        ValueError: an argument is out of range.

    Attributes:
        q: the queries of the first view in the last step, N x dim, without gradient; the log shows their spread.

    Buffers: `queue` (dim x K, each column of norm 1) and `queue_ptr` (long, shape 1, the column to write next).
    """

    def __init__(
        self,
        base_encoder,
        dim=128,
        K=65536,
        m=0.999,
        T=0.07,
        enable_asym_bn=False,
        seed=0,
        asym_bn_group=None,
        bn_splits=1,
        asym_bn_on="target",
        mean_source=False,
    ):
        super().__init__()
        for name, value, valid, rule in (
            ("dim", dim, dim >= 1, "1 or more"),
            ("K", K, K >= 1, "1 or more"),
            ("m", m, 0 <= m <= 1, "0 to 1"),
            ("T", T, 0 < T < math.inf, "a finite number, more than 0"),
            ("seed", seed, seed >= 0, "0 or more"),
            ("asym_bn_on", repr(asym_bn_on), asym_bn_on in SIDES, f"one of {', '.join(SIDES)}"),
        ):
            if not valid:
                raise ValueError(f"MoCo's {name} is {value}, but must be {rule}")
        self.K, self.m, self.T, self.seed, self.bn_splits, self.mean_source = K, m, T, seed, bn_splits, mean_source
        self.step = 0  # used only if the caller gives no step; not in the state dict

        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self.encoder_q = split_batchnorm(add_projector(base_encoder(num_classes=dim)), bn_splits)
            queue = F.normalize(torch.randn(dim, K), dim=0)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        for side, encoder in (("source", self.encoder_q), ("target", self.encoder_k)):
            if enable_asym_bn and asym_bn_on in (side, "both"):
                synchronize_projector(encoder.fc, asym_bn_group, bn_splits)

        self.register_buffer("queue", queue)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, im_q, im_q_mini, im_k, step=None, im_k_mini=()):
        """One step of Algorithm 1. Every rank must call it, with the same N.

        Args:
            im_q: list with one batch per source view, each N x 3 x H x W, float32, normalised. With `mean_source`, the
                encodings of each image are averaged over its views.
            im_q_mini: list with one batch per small source view (MultiCrop), each N x 3 x h x w; may be empty.
            im_k: list with one batch per target view, each N x 3 x H x W. If there are several, the encodings of each
                image are averaged over its views (MeanEnc).
            step: the global step, a non-negative integer; if None, the model counts its own calls.
            im_k_mini: list with one batch per small target view, each N x 3 x h x w; may be empty. Their keys are
                positives of the full-size queries, but do not enter the queue.

        Returns:
            (logits, labels): two lists with one entry per pair of a query and a key: each query, those of `im_q`
            first, with the key of `im_k`; then, for each view of `im_k_mini`, each query of `im_q` with its key. Each
            entry of logits is N x (1 + K), the positive key first; each entry of labels is N zeros (long).

        Raises:
            ValueError: B is larger than K, or `bn_splits` does not divide N.
        """
        step = self.step if step is None else step
        if self.training:
            check_parts(im_q[0], self.bn_splits)
        q_full = self.encode_mean_query(im_q) if self.mean_source else self.encode_queries(im_q)
        q = [*q_full, *self.encode_queries(im_q_mini)]  # queries: N x C per view
        self.update_momentum_encoder()
        keys = self.encode_keys(im_k, step)  # keys of all processes: B x C
        k = self.own(keys)  # keys of this process: N x C
        k_mini = self.encode_small_keys(im_k_mini, step)  # N x C per view
        self.q = q[0].detach()  # for the log
        logits = self.contrast(q, k, k_mini, len(q_full))  # N x (1 + K) per pair
        self.enqueue(keys)
        self.step = step + 1
        labels = [torch.zeros(len(k), dtype=torch.long, device=k.device) for _ in logits]
        return logits, labels

    def encode_queries(self, views):
        """Encodes source views of one size, a list of N x 3 x H x W, to a list of normalised queries, each N x C.

        One forward pass encodes all views. Batch normalisation still treats each view as a separate batch.
        """
        if not views:
            return []
        with views_apart(self, len(views)):
            return normalize(self.encoder_q(torch.cat(views))).chunk(len(views))

    def encode_mean_query(self, views):
        """Encodes source views to one query, N x C, the mean of their encodings; returns a list with that query.

        As on the target, the views are one batch for batch normalisation. Here, each of its groups has all views of
        its images.
        """
        V, S = len(views), self.bn_splits
        groups = [view.split(len(view) // S) for view in views]  # views x groups
        x = torch.cat([part for group in zip(*groups, strict=True) for part in group])
        q = at_least_fp32(self.encoder_q(x)).unflatten(0, (S, V, -1))  # groups x views x N / groups x C
        return [normalize(mean_encoding(q.transpose(0, 1).flatten(1, 2)))]

    @torch.no_grad()
    def update_momentum_encoder(self):
        """Sets k = m k + (1 - m) q for each parameter k of encoder_k and q of encoder_q, but not for their buffers."""
        k, q = (list(encoder.parameters()) for encoder in (self.encoder_k, self.encoder_q))
        torch._foreach_lerp_(k, q, 1 - self.m)

    @torch.no_grad()
    def encode_keys(self, im_k, step):
        """Encodes this process's target views, a list of N x 3 x H x W, and gathers the keys of all processes.

        Returns:
            B x C, normalised, in the order of the global batch, the same on every rank.
        """
        shuffle = BatchShuffle(len(im_k), len(im_k[0]), self.seed, step, self.bn_splits)
        k = self.encoder_k(shuffle.shuffle(torch.cat(im_k)))  # (views * N) x C
        k = at_least_fp32(shuffle.gather_unshuffled(k))  # views x B x C
        k = mean_encoding(k) if len(im_k) > 1 else k[0]  # B x C
        return normalize(k)

    @torch.no_grad()
    def encode_small_keys(self, views, step):
        """Encodes small target views, a list of N x 3 x h x w, to a list of this process's keys, each N x C.

        Each view is shuffled by itself. One forward pass encodes all; batch normalisation still treats each view as a
        separate batch.
        """
        if not views:
            return []
        N = len(views[0])
        shuffles = [BatchShuffle(1, N, self.seed, step, self.bn_splits, which) for which in range(1, len(views) + 1)]
        shuffled = [shuffle.shuffle(view) for shuffle, view in zip(shuffles, views, strict=True)]
        with views_apart(self, len(views)):
            k = self.encoder_k(torch.cat(shuffled)).chunk(len(views))
        return [normalize(self.own(s.gather_unshuffled(x)[0])) for s, x in zip(shuffles, k, strict=True)]

    def own(self, keys):
        """This process's rows, N x C, of B x C."""
        return keys.chunk(world_size())[rank()]

    def contrast(self, q, k, k_mini=(), full=1):
        """Returns the logits [q.k, q.queue] / T of each pair, a list of N x (1 + K).

        Args:
            q: list of queries, each N x C. k: their keys, N x C.
            k_mini: list of further keys, each N x C, for the first `full` queries.
        """
        with torch.autocast(k.device.type, enabled=False):
            queue = self.queue.to(k.dtype, copy=True)  # since `enqueue` changes it before the backward pass
            q = torch.stack(q) / self.T  # queries x N x C
            l_neg = q @ queue  # negative logits, one product for all queries: queries x N x K
            l_pos = (q * k).sum(dim=2, keepdim=True)  # positive logits: queries x N x 1
            logits = [*torch.cat([l_pos, l_neg], dim=2)]
            for key in k_mini:
                l_pos = (q[:full] * key).sum(dim=2, keepdim=True)
                logits += torch.cat([l_pos, l_neg[:full]], dim=2)
            return logits

    @torch.no_grad()
    def enqueue(self, keys):
        """Replaces the oldest columns of the queue by `keys` (B x C); raises ValueError if B > K."""
        if len(keys) > self.K:
            raise ValueError(f"a batch of {len(keys)} keys does not fit into a queue of {self.K}")
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue.index_copy_(1, columns, keys.T.to(self.queue.dtype))
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)


def add_projector(encoder):
    """Puts the projector's hidden layers (Linear, BN, ReLU, Linear, ReLU, all of width d) before the encoder's `fc`.

    d is the width of the backbone, the number of input features of `fc`. Returns the encoder, changed in place.
    """
    d = encoder.fc.in_features
    encoder.fc = nn.Sequential(nn.Linear(d, d), nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), encoder.fc)
    return encoder


def normalize(x):
    """Scales each row of N x C to L2 norm 1, in float32 or wider."""
    return F.normalize(at_least_fp32(x), dim=1)
