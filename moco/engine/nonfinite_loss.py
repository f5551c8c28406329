"""Ends a run whose loss or weights become NaN or infinite, before another checkpoint is written."""

import torch

from moco.distributed import all_gather, from_rank_0


class NonfiniteGuard:
    """Stores, on the device, the first step of the epoch with a loss that is not finite. No step waits for the loss.

    Args:
        loader: the training loader, which knows the images of a step.
        optimizer: for its learning rate and parameters.
        last_checkpoint: called without arguments if a value is not finite; returns the path of the last good
            checkpoint, or None.
    """

    def __init__(self, loader, optimizer, last_checkpoint):
        self.loader, self.optimizer, self.last_checkpoint = loader, optimizer, last_checkpoint
        self.first = None

    def see(self, loss, step):
        """Call in each step, with its loss (a scalar tensor of this process) and its 0-based number in the epoch."""
        if self.first is None:
            self.first = torch.full_like(loss, -1, dtype=torch.long)
        self.first = torch.where((self.first < 0) & ~loss.detach().isfinite(), step, self.first)

    def check(self, weights=False):
        """Collects the results of all ranks and waits for the device. Call on every rank, before each checkpoint too.

        Args:
            weights: whether to check the parameters, too; an update may break them before a loss shows it.

        Raises:
            FloatingPointError: on every rank, if a loss of any rank or a parameter is not finite. The message gives
                the epoch; for a loss also the step, the rank and the images.
        """
        parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        first = torch.tensor(-1, device=parameters[0].device) if self.first is None else self.first
        broken = torch.zeros_like(first, dtype=torch.bool)
        for p in parameters if weights else ():
            broken |= ~p.isfinite().all()
        notes = all_gather(torch.stack([first, broken.long()])[None]).tolist()
        bad = [(step, rank) for rank, (step, _) in enumerate(notes) if step >= 0]
        if not bad and not any(broken for _, broken in notes):
            return
        batches, folder = self.loader.batch_sampler, self.loader.dataset.folder
        checkpoint = from_rank_0(self.last_checkpoint()) or "none yet"  # rank 0 writes the checkpoints
        lr = self.optimizer.param_groups[0]["lr"]
        if not bad:
            raise FloatingPointError(
                f"a weight is no longer finite in epoch {batches.epoch}, at learning rate {lr:g}, though the loss "
                f"before its last update was finite; last good checkpoint: {checkpoint}"
            )
        step, rank = min(bad)
        substituted = getattr(self.loader.dataset, "substitutes", None)
        whose = "its images (or images used instead of bad ones):" if substituted else "its images:"
        images = "\n  ".join(folder.path(index) for _, index in batches.addresses(step, rank))
        raise FloatingPointError(
            f"the loss of rank {rank} is not finite in step {step} of epoch {batches.epoch}, at learning rate {lr:g}; "
            f"last good checkpoint: {checkpoint}; {whose}\n  {images}"
        )
