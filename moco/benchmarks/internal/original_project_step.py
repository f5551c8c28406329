"""The original project's training step, written again from its description, for benchmarks.step to compare with.

It takes one forward pass per view, updates the moving average parameter by parameter, gathers every image on every
rank for the shuffle, copies the queue for each view, and gathers the keys twice.
"""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from moco.asymmetry.asym_bn import SyncBatchNorm1d
from moco.batchnorm import replace_batchnorm
from moco.builder import add_projector
from moco.distributed import is_initialized, rank, world_size


class OriginalMoCo(nn.Module):
    """MoCo with the arguments of `moco.builder.MoCo`, but without batch-norm groups within a process."""

    def __init__(self, base_encoder, dim, K, m, T, enable_asym_bn, device):
        super().__init__()
        self.K, self.m, self.T = K, m, T
        self.encoder_q = add_projector(base_encoder(num_classes=dim))
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for p in self.encoder_k.parameters():
            p.requires_grad = False
        if enable_asym_bn and is_initialized():
            if device.type == "cuda":
                self.encoder_k.fc = nn.SyncBatchNorm.convert_sync_batchnorm(self.encoder_k.fc)
            else:  # torch's SyncBatchNorm takes no CPU tensors
                replace_batchnorm(self.encoder_k.fc, SyncBatchNorm1d)
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, im_q, im_q_mini, im_k):
        queries = [F.normalize(self.encoder_q(im), dim=1) for im in (*im_q, *im_q_mini)]
        with torch.no_grad():
            for p_q, p_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                p_k.data = p_k.data * self.m + p_q.data * (1 - self.m)
            k = self.encode_keys(torch.cat(list(im_k)), len(im_k))
        logits, labels = [], []
        for q in queries:
            l_pos = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
            l_neg = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
            logits.append(torch.cat([l_pos, l_neg], dim=1) / self.T)
            labels.append(torch.zeros(len(q), dtype=torch.long, device=q.device))
        self.enqueue(k)
        return logits, labels

    def encode_keys(self, images, views):
        n = len(images)
        everyones = gather(images)
        order = torch.randperm(len(everyones), device=images.device)
        if is_initialized():
            dist.broadcast(order, src=0)
        mine = order.view(world_size(), n)[rank()]
        encoded = gather(self.encoder_k(everyones[mine]))
        back = torch.argsort(order).view(world_size(), n)[rank()]
        k = encoded[back]
        return F.normalize(sum(k.chunk(views)) / views, dim=1)

    @torch.no_grad()
    def enqueue(self, k):
        keys, start = gather(k), int(self.queue_ptr)  # the host waits
        columns = torch.arange(start, start + len(keys), device=k.device) % self.K
        self.queue[:, columns] = keys.T
        self.queue_ptr[0] = (start + len(keys)) % self.K


@torch.no_grad()
def gather(x):
    """Concatenates the tensors of all ranks."""
    if not is_initialized():
        return x.clone()
    everyones = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(everyones, x.contiguous())
    return torch.cat(everyones)


def original_step(net, optimizer, views):
    """One update of the weights; returns the meters, which the original reads in each step."""
    logits, labels = net(*views)
    losses = [F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)]
    loss = losses[0] + (sum(losses[1:]) / len(losses[1:]) if len(losses) > 1 else 0)
    _, best = logits[0].topk(5, dim=1)
    hits = best.t().eq(labels[0].view(1, -1)).reshape(5, -1).float()
    meters = loss.item(), hits[:1].sum().item(), hits.sum().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return meters
