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

    def check(self):
        """Checks the losses and weights of all ranks and waits for the device. Call on every rank before a checkpoint.

        An update may break the weights before a loss shows it.

        Raises:
            FloatingPointError: as `judge`.
        """
        parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        first = parameters[0].new_full((), -1, dtype=torch.long) if self.first is None else self.first
        broken = torch.zeros_like(first, dtype=torch.bool)
        for p in parameters:
            broken |= ~p.isfinite().all()
        first, broken = zip(*all_gather(torch.stack([first, broken.long()])[None]).tolist(), strict=True)
        self.judge(first, any(broken))

    def judge(self, first, broken=False):
        """Ends the run if it is broken; all ranks must call it with the same arguments.

        Args:
            first: for each rank, its `first` as a number; -1 if all losses were finite. broken: whether a parameter is
                not finite.

        Raises:
            FloatingPointError: on every rank, if a loss of any rank or a parameter is not finite. The message gives
                the epoch; for a loss also the step, the rank and the images.
        """
        bad = [(int(step), rank) for rank, step in enumerate(first) if step >= 0]
        if not bad and not broken:
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
