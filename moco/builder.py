"""MoCo v2 as the paper's baseline: two encoders, a queue, and Algorithm 1 of the MoCo paper (arXiv 1911.05722).

A source view passes encoder_q, trained by gradient; a target view passes encoder_k, its moving average. The
asymmetric designs stand in `moco/asymmetry/`, one file each; those that change the model are single calls here.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from moco.asymmetry.asym_bn import synchronize_projector
from moco.asymmetry.mean_encoding import mean_encoding
from moco.batchnorm import split_batchnorm, views_apart
from moco.device import at_least_fp32
from moco.distributed import BatchShuffle, rank


class MoCo(nn.Module):
    """Momentum contrast with a projector MLP that has BN after its first layer.

    Args:
        base_encoder: callable, `base_encoder(num_classes=dim)` returns a network whose classifier is a Linear `fc`.
        dim: features of a key and a query (C).
        K: keys in the queue.
        m: momentum of the target encoder.
        T: temperature of the softmax.
        enable_asym_bn: synchronise the BN of the target's projector (AsymBN).
        seed: of the weights, the queue and each step's shuffle; the same on every rank.
        asym_bn_group: BN groups, processes times `bn_splits`, that AsymBN normalises over; None means all.
        bn_splits: BN groups on this device, each of which acts as a device of its own.

    Buffers: `queue` (dim x K, columns of norm 1) and `queue_ptr` (long, shape 1), the column written next.
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
        self.K, self.m, self.T, self.seed, self.bn_splits = K, m, T, seed, bn_splits
        self.step = 0  # counts forwards where the caller does not; addresses the shuffle, never saved

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
        """One step of Algorithm 1.

        Args:
            im_q: list of source batches, each N x 3 x H x W.
            im_q_mini: list of smaller source batches (MultiCrop), each N x 3 x h x w; may be empty.
            im_k: list of target batches, each N x 3 x H x W; more than one are averaged (MeanEnc).
            step: the global step, a non-negative integer; None counts the calls.

        Returns:
            (logits, labels): two lists with one entry a source view, im_q first: N x (1 + K) and N (long, all 0:
            the positive comes first).
        """
        step = self.step if step is None else step
        q = [*self.encode_queries(im_q), *self.encode_queries(im_q_mini)]  # queries: N x C a view
        self.update_momentum_encoder()
        keys = self.encode_keys(im_k, step)  # keys of all devices: B x C
        N = len(im_q[0])
        k = keys[rank() * N : (rank() + 1) * N]  # this device's: N x C
        logits = self.contrast(q, k)  # N x (1 + K) a view
        self.enqueue(keys)
        self.step = step + 1
        labels = [torch.zeros(N, dtype=torch.long, device=k.device) for _ in q]
        return logits, labels

    def encode_queries(self, views):
        """Source views of one size, each N x 3 x H x W, to normalised queries, each N x C.

        They pass encoder_q together; for batch normalisation each is a batch of its own, one after the other.
        """
        if not views:
            return []
        with views_apart(self.encoder_q, len(views)):
            return normalize(self.encoder_q(torch.cat(views))).chunk(len(views))

    @torch.no_grad()
    def update_momentum_encoder(self):
        """k = m k + (1 - m) q for all parameters, in one fused update; buffers are encoder_k's own."""
        k, q = (list(encoder.parameters()) for encoder in (self.encoder_k, self.encoder_q))
        torch._foreach_lerp_(k, q, 1 - self.m)

    @torch.no_grad()
    def encode_keys(self, im_k, step):
        """List of N x 3 x H x W to the normalised keys of all devices, B x C in the order of the global batch."""
        shuffle = BatchShuffle(len(im_k), len(im_k[0]), self.seed, step, self.bn_splits)
        k = self.encoder_k(shuffle.shuffle(torch.cat(im_k)))  # (views N) x C
        k = shuffle.gather_unshuffled(k)  # views x B x C
        return normalize(mean_encoding(at_least_fp32(k)))

    def contrast(self, q, k):
        """[q.k, q.queue] / T for each view's queries: list of N x C and N x C to list of N x (1 + K)."""
        with torch.autocast(k.device.type, enabled=False):
            queue = self.queue.to(k.dtype, copy=True)  # the backward pass needs it as it is before enqueue
            q = torch.stack(q) / self.T  # views x N x C
            l_pos = (q * k).sum(dim=2, keepdim=True)  # positive logits: views x N x 1
            l_neg = q @ queue  # negative logits, one product for all views: views x N x K
            return list(torch.cat([l_pos, l_neg], dim=2))

    @torch.no_grad()
    def enqueue(self, keys):
        """Overwrites the oldest columns of the ring with `keys` (B x C); raises ValueError where B > K."""
        if len(keys) > self.K:
            raise ValueError(f"a batch of {len(keys)} keys does not fit into a queue of {self.K}")
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue.index_copy_(1, columns, keys.T.to(self.queue.dtype))
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)


def add_projector(encoder):
    """Puts Linear, BN, ReLU, Linear, ReLU before the encoder's own `fc`, at the backbone's width d."""
    d = encoder.fc.in_features
    encoder.fc = nn.Sequential(nn.Linear(d, d), nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), encoder.fc)
    return encoder


def normalize(x):
    """Rows of N x C to norm 1, never below fp32."""
    return F.normalize(at_least_fp32(x), dim=1)
