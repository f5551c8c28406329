"""A loss that is not finite ends the run before a checkpoint is written, without a wait for the device in a step."""

import torch

from moco.distributed import all_gather, from_rank_0


class LossGuard:
    """Remembers, on the device, the first step of an epoch whose loss was not finite.

    Args:
        loader: of `loader.training_loader`, which knows the images of a step. optimizer: for its learning rate.
        last_checkpoint: called without arguments when it comes to that; the path of the last good one, or None.
    """

    def __init__(self, loader, optimizer, last_checkpoint):
        self.loader, self.optimizer, self.last_checkpoint = loader, optimizer, last_checkpoint
        self.first = None

    def see(self, loss, step):
        """Call in each step, with this process's loss, a scalar tensor, and the step's number in the epoch."""
        if self.first is None:
            self.first = torch.full_like(loss, -1, dtype=torch.long)
        self.first = torch.where((self.first < 0) & ~loss.detach().isfinite(), step, self.first)

    def check(self):
        """Call on every rank, now and then and before a checkpoint is written; waits for the device.

        Raises:
            FloatingPointError: on every rank, where a loss of any was not finite; says which and what went into it.
        """
        if self.first is None:
            return
        bad = [(step, rank) for rank, step in enumerate(all_gather(self.first[None]).tolist()) if step >= 0]
        if not bad:
            return
        step, rank = min(bad)
        batches, folder = self.loader.batch_sampler, self.loader.dataset.folder
        images = "\n  ".join(folder.path(index) for _, index in batches.addresses(step, rank))
        checkpoint = from_rank_0(self.last_checkpoint())  # which is who writes them
        lr = self.optimizer.param_groups[0]["lr"]
        raise FloatingPointError(
            f"the loss of rank {rank} is not finite in step {step} of epoch {batches.epoch}, at learning rate {lr:g}; "
            f"last good checkpoint: {checkpoint or 'none yet'}; its images:\n  {images}"
        )
