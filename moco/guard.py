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

    def check(self, weights=False):
        """Call on every rank, now and then and before a checkpoint is written; waits for the device.

        Args:
            weights: look at the parameters too, which an update may have broken before a loss shows it.

        Raises:
            FloatingPointError: on every rank, where a loss of any was not finite; says which and what went into it.
                Or where a parameter is not.
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
        checkpoint = from_rank_0(self.last_checkpoint()) or "none yet"  # which is who writes them
        lr = self.optimizer.param_groups[0]["lr"]
        if not bad:
            raise FloatingPointError(
                f"a weight is not finite any more in epoch {batches.epoch}, at learning rate {lr:g}, though the loss "
                f"before its last update was; last good checkpoint: {checkpoint}"
            )
        step, rank = min(bad)
        substituted = getattr(self.loader.dataset, "substitutes", None)
        whose = "its images, or what took the place of bad ones:" if substituted else "its images:"
        images = "\n  ".join(folder.path(index) for _, index in batches.addresses(step, rank))
        raise FloatingPointError(
            f"the loss of rank {rank} is not finite in step {step} of epoch {batches.epoch}, at learning rate {lr:g}; "
            f"last good checkpoint: {checkpoint}; {whose}\n  {images}"
        )
