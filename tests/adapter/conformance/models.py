"""Tiny models of every kind, with the same weights at every call, and their inputs. Nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear layers, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1, self.head = nn.Linear(12, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.lin1(torch.tanh(self.lin0(x)))))


class Conv(nn.Module):
    """Convolutions with a stride, a dilation and other padding than zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(8, 8, (3, 2), padding=1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv1(torch.tanh(self.conv0(x)))).mean((2, 3)))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class ExpertBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 4)
        self.experts = nn.ModuleList(Expert() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        return x + sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Experts(nn.Module):
    """Numbered experts in numbered blocks: `layers.0.experts.2.up`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ExpertBlock() for _ in range(2))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class MlpBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(12, 12)
        self.mlp = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Dropout(0.0), nn.Linear(16, 12), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x + self.attn(x))


class Torchvision(nn.Module):
    """Numbered layers inside numbered blocks, as in torchvision: `encoder.layers.1.mlp.0`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential(MlpBlock(), MlpBlock())
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder.layers(x))


class Attention(nn.Module):
    """torch's own attention, whose projections are called as functions, beside linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.head(x + self.down(torch.tanh(self.up(x))))


@dataclass(frozen=True)
class Kind:
    """A kind of model."""

    name: str
    make: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    targets: list[str]
    count: int
    """How many layers the targets are."""
    head: str = "head"
    options: dict[str, Any] = field(default_factory=dict)
    """Options that a configuration for this kind needs."""

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tiny sizes
            torch.manual_seed(0)
            return self.make().eval().to(dtype)

    def given(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in self.inputs.items()}

    def run(self, model: nn.Module, dtype: torch.dtype = torch.float32, **more: Any) -> Tensor:
        """The output for the kind's inputs: class scores or those of the next word."""
        result = model(**self.given(dtype), **more)
        return result if isinstance(result, Tensor) else result.logits

    def __str__(self) -> str:
        return self.name


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _transformer(name: str, model: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{name}Config")(**sizes)
        return getattr(transformers, f"{name}{model}")(config)

    return make


WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**WIDTHS, "image_size": 16, "patch_size": 8, "num_labels": 5}
WORDS = torch.arange(3, 15).view(2, 6)
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 20, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, **NO_DROPOUT, **TOKENS}
LLAMA = {**WIDTHS, "vocab_size": 20, "max_position_embeddings": 16, "num_key_value_heads": 1, **TOKENS}
OPT = {
    "vocab_size": 20, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 16, "word_embed_proj_dim": 16, "dropout": 0.0, **TOKENS,
}  # fmt: skip
T5 = {
    "vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
BERT = {
    **WIDTHS, "vocab_size": 20, "max_position_embeddings": 16, "num_labels": 5, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, **TOKENS,
}  # fmt: skip


def _timm_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
    )


_VECTORS, _ROWS, _SIGNAL = {"x": _noise(3, 12)}, {"x": _noise(3, 4, 12)}, {"x": _noise(3, 3, 9, 9)}
_IMAGES, _PIXELS = {"x": _noise(3, 3, 32, 32)}, {"pixel_values": _noise(3, 3, 16, 16)}
_TEXT = {"input_ids": WORDS}
_vit = _transformer("ViT", "ForImageClassification", **VISION)
_gpt2 = _transformer("GPT2", "LMHeadModel", **GPT2)
_llama = _transformer("Llama", "ForCausalLM", **LLAMA)
_opt = _transformer("OPT", "ForCausalLM", **OPT)
_t5 = _transformer("T5", "ForConditionalGeneration", **T5)
_bert = _transformer("Bert", "ForSequenceClassification", **BERT)

KINDS = {
    kind.name: kind
    for kind in (
        Kind("mlp", Mlp, _VECTORS, ["lin0", "lin1"], 2),
        Kind("conv", Conv, _SIGNAL, ["conv0", "conv1"], 2),
        Kind("experts", Experts, _ROWS, ["up", "down"], 16),
        Kind("torchvision", Torchvision, _ROWS, ["mlp.0", "mlp.3"], 4),
        Kind("attention", Attention, _ROWS, ["up", "down"], 2),
        Kind("timm", _timm_vit, _IMAGES, ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], 8),
        Kind("vit", _vit, _PIXELS, ["q_proj", "v_proj"], 4, "classifier"),
        Kind("gpt2", _gpt2, _TEXT, ["c_attn", "c_fc"], 4, "lm_head", {"fan_in_fan_out": True}),
        Kind("llama", _llama, _TEXT, ["q_proj", "v_proj", "down_proj"], 6, "lm_head"),
        Kind("opt", _opt, _TEXT, ["q_proj", "fc1"], 4, "lm_head"),
        Kind("t5", _t5, {**_TEXT, "decoder_input_ids": WORDS[:, :3]}, ["q", "v", "wi"], 16, "lm_head"),
        Kind("bert", _bert, _TEXT, ["query", "value"], 4, "classifier"),
    )
}


def kinds(*names: str) -> list[Kind]:
    return [KINDS[name] for name in names]
