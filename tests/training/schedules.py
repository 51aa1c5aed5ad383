"""The schedules of the published settings as mmengine computes them."""

import warnings

import torch


def of_mmengine(groups, steps, power=0.9, warmup=0, final_weight_decay=1e-5):
    """Learning rate and weight decay of each group at each step; a group is given as its first (lr, weight_decay)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what mmengine imports
        from mmengine.optim.scheduler import CosineAnnealingParamScheduler, LinearLR, PolyLR
    parameters = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr, "weight_decay": decay} for lr, decay in groups
    ]
    optimizer = torch.optim.AdamW(parameters)
    schedulers = [
        PolyLR(optimizer, eta_min=0, power=power, begin=warmup, end=steps, by_epoch=False),
        CosineAnnealingParamScheduler(
            optimizer, "weight_decay", eta_min=final_weight_decay, begin=0, end=steps, by_epoch=False
        ),
    ]
    if warmup:
        schedulers.insert(0, LinearLR(optimizer, start_factor=1e-6, begin=0, end=warmup, by_epoch=False))
    values = []
    for _ in range(steps):
        values.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return values
