"""MoCo v2 (arXiv 2003.04297), the baseline of the paper (arXiv 2204.00613): two encoders and a queue of keys.

`MoCo.forward` is Algorithm 1 of MoCo (arXiv 1911.05722). `encoder_q` encodes the source's views and is trained by
gradient descent. `encoder_k` encodes the target's views and is the exponential moving average of `encoder_q`. Each
asymmetric design has its own file in `moco/asymmetry/`. The two designs that change the model, AsymBN and MeanEnc, are
one call each in this file. N is the number of images on this process, B the number on all processes.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from moco.asymmetry.asym_bn import synchronize_projector
from moco.asymmetry.mean_encoding import mean_encoding
from moco.batchnorm import split_batchnorm, views_apart
from moco.distributed import rank
from moco.precision import at_least_fp32
from moco.shuffle_bn import BatchShuffle


class MoCo(nn.Module):
    """Momentum contrast with a projector MLP that has batch normalisation after its first layer.

    Args:
        base_encoder: a callable; `base_encoder(num_classes=dim)` returns a network with a Linear classifier `fc`.
        dim: number of features of a query and of a key (C).
        K: number of keys in the queue.
        m: momentum of the target encoder.
        T: softmax temperature.
        enable_asym_bn: whether to synchronise the batch normalisation of the target's projector (AsymBN).
        seed: determines the initial weights, the initial queue and the shuffle of each step; it must be equal on every
            rank.
        asym_bn_group: number of batch-norm groups whose statistics AsymBN computes together; None means all groups,
            that is processes times `bn_splits`.
        bn_splits: number of batch-norm groups on this process. Each group is normalised as if it had its own GPU.

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
    ):
        super().__init__()
        for name, value, valid, rule in (
            ("dim", dim, dim >= 1, "1 or more"),
            ("K", K, K >= 1, "1 or more"),
            ("m", m, 0 <= m <= 1, "0 to 1"),
            ("T", T, 0 < T < math.inf, "a finite number, more than 0"),
            ("seed", seed, seed >= 0, "0 or more"),
        ):
            if not valid:
                raise ValueError(f"MoCo's {name} is {value}, but must be {rule}")
        self.K, self.m, self.T, self.seed, self.bn_splits = K, m, T, seed, bn_splits
        self.step = 0  # used only if the caller gives no step; not in the state dict

        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self.encoder_q = split_batchnorm(add_projector(base_encoder(num_classes=dim)), bn_splits)
            queue = F.normalize(torch.randn(dim, K), dim=0)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        if enable_asym_bn:
            synchronize_projector(self.encoder_k.fc, asym_bn_group, bn_splits)

        self.register_buffer("queue", queue)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, im_q, im_q_mini, im_k, step=None):
        """One step of Algorithm 1. Every rank must call it, with the same N.

        Args:
            im_q: list with one batch per source view, each N x 3 x H x W, float32, normalised.
            im_q_mini: list with one batch per small source view (MultiCrop), each N x 3 x h x w; may be empty.
            im_k: list with one batch per target view, each N x 3 x H x W. If there are several, the encodings of each
                image are averaged over its views (MeanEnc).
            step: the global step, a non-negative integer; if None, the model counts its own calls.

        Returns:
            (logits, labels): two lists with one entry per source view, those of `im_q` first. Each entry of logits is
            N x (1 + K), the positive key first; each entry of labels is N zeros (long).

        Raises:
            ValueError: B is larger than K, or `bn_splits` does not divide N.
        """
        step = self.step if step is None else step
        q = [*self.encode_queries(im_q), *self.encode_queries(im_q_mini)]  # queries: N x C per view
        self.update_momentum_encoder()
        keys = self.encode_keys(im_k, step)  # keys of all processes: B x C
        N = len(im_q[0])
        k = keys[rank() * N : (rank() + 1) * N]  # keys of this process: N x C
        self.q = q[0].detach()  # for the log
        logits = self.contrast(q, k)  # N x (1 + K) per view
        self.enqueue(keys)
        self.step = step + 1
        labels = [torch.zeros(N, dtype=torch.long, device=k.device) for _ in q]
        return logits, labels

    def encode_queries(self, views):
        """Encodes source views of one size, a list of N x 3 x H x W, to a list of normalised queries, each N x C.

        One forward pass encodes all views. Batch normalisation still treats each view as a separate batch.
        """
        if not views:
            return []
        with views_apart(self, len(views)):
            return normalize(self.encoder_q(torch.cat(views))).chunk(len(views))

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

    def contrast(self, q, k):
        """Returns the logits [q.k, q.queue] / T of each view, a list of N x (1 + K).

        Args:
            q: list of queries, each N x C. k: keys, N x C.
        """
        with torch.autocast(k.device.type, enabled=False):
            queue = self.queue.to(k.dtype, copy=True)  # since `enqueue` changes it before the backward pass
            q = torch.stack(q) / self.T  # views x N x C
            l_pos = (q * k).sum(dim=2, keepdim=True)  # positive logits: views x N x 1
            l_neg = q @ queue  # negative logits, one product for all views: views x N x K
            return list(torch.cat([l_pos, l_neg], dim=2))

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
