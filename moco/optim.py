"""Fused SGD, LARS, and the cosine schedule of the learning rate."""

import math

import torch


def sgd(params, lr, momentum=0, weight_decay=0):
    """torch.optim.SGD in its fused form, with momentum buffers that exist from the start, as zeros.

    Otherwise the fused update would create the buffers in its first step, and leave them uninitialised if a loss
    scaler skips that step. On a CPU, the fused update gives wrong results if a gradient or a buffer has a memory
    format different from that of its parameter. Autograd's gradients and these buffers have the format of their
    parameter.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD.

    Returns:
        A torch.optim.SGD.

    Raises:
        ValueError: as `check_options`.
    """
    check_options(lr, momentum, weight_decay)
    optimizer = torch.optim.SGD(params, lr, momentum, weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            if momentum and p.requires_grad:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def check_options(lr, momentum, weight_decay, trust_coefficient=0.001):
    """Raises ValueError if an option of an optimizer is out of range, where it would train nothing, or diverge."""
    for name, value, valid, rule in (
        ("lr", lr, 0 <= lr < math.inf, "0 or more"),
        ("momentum", momentum, 0 <= momentum <= 1, "0 to 1"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "0 or more"),
        ("trust_coefficient", trust_coefficient, 0 < trust_coefficient < math.inf, "more than 0"),
    ):
        if not valid:
            raise ValueError(f"the optimizer's {name} is {value}, but must be a finite number, {rule}")


class LARS(torch.optim.SGD):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888) around SGD with momentum.

    It computes what LARC(trust_coefficient, clip=False) of older NVIDIA apex releases computes. For each parameter w
    with gradient g, biases included, if both norms are greater than 0:

        g <- (g + wd w) trust ||w|| / (||g|| + wd ||w|| + 1e-8)

    where wd is the weight decay and trust the trust coefficient. If a norm is 0, g does not change. Then SGD follows,
    without weight decay. The gradients are changed in place. The state dict is that of torch.optim.SGD.

    Args:
        params: iterable of parameters or of groups.
        lr: learning rate. momentum, weight_decay: as in torch.optim.SGD.
        trust_coefficient: the ratio ||update|| / ||w|| at lr 1 and without momentum.

    Raises:
        ValueError: as `check_options`.
    """

    def __init__(self, params, lr, momentum=0, weight_decay=0, trust_coefficient=0.001):
        check_options(lr, momentum, weight_decay, trust_coefficient)
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay)
        self.trust_coefficient = trust_coefficient

    @torch.no_grad()
    def step(self, closure=None):
        """Updates the parameters once; returns the loss of `closure()`, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._scale(p, group["weight_decay"])
                group["weight_decay"] = 0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss

    def _scale(self, p, decay):
        w_norm, g_norm = p.norm(), p.grad.norm()
        ratio = self.trust_coefficient * w_norm / (g_norm + decay * w_norm + 1e-8)
        scaled = (p.grad + decay * p) * ratio
        p.grad.copy_(torch.where((w_norm > 0) & (g_norm > 0), scaled, p.grad))  # the host does not wait for the GPU


def cosine_lr(base_lr, epoch, epochs):
    """The learning rate of the 0-based `epoch`: half a cosine from base_lr to 0 over `epochs` epochs.

    Raises ValueError if `epoch` is not within 0 to `epochs`, where the cosine would rise again.
    """
    if not 0 <= epoch <= epochs or epochs <= 0:
        raise ValueError(f"epoch {epoch} is not one of {epochs} epochs, which count from 0")
    return base_lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def set_lr(optimizer, lr):
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
