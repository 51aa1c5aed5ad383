"""Tiny models and inputs that several tests share."""

import timm
import torch
from torch import nn


def tiny_vit(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A timm ViT of two blocks, width 48, for images of 32 x 32 pixels; the same weights for the same seed."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3, num_classes=0)
    return model.eval().to(dtype)


def images(batch: int = 2, size: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def train(model: nn.Module, groups: list, steps: int = 3, dtype: torch.dtype = torch.float32) -> None:
    optimizer = torch.optim.AdamW(groups)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images(dtype=dtype)).float().square().mean().backward()
        optimizer.step()
