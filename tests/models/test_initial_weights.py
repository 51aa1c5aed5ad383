"""Initial weights of Mask2Former: the published distribution of every parameter, at the published width."""

import math
import re

import pytest
import torch
from torch import nn

from recyclelora.models.heads.initial_weights import initialise
from recyclelora.models.heads.mask2former import Mask2FormerHead

UNIFORM, NORMAL = 1.8, 3.0
"""The kurtosis tells the distributions apart."""

ENCODER, DECODER = r"pixel_decoder\.encoder\.layers\.\d\.", r"transformer_module\.decoder\.layers\.\d\."
SPREAD = [  # names, shape of the distribution, standard deviation at width 256 from maps of 64 channels
    (r"pixel_decoder\.input_projections\.\d\.0\.weight", UNIFORM, 0.0791),
    (r"pixel_decoder\.adapter_1\.0\.weight", UNIFORM, 0.125),
    (r"pixel_decoder\.layer_1\.0\.weight", UNIFORM, 0.0208),
    (r"pixel_decoder\.mask_projection\.weight", UNIFORM, 0.0625),
    (r"pixel_decoder\.level_embed", NORMAL, 1),
    (ENCODER + r"self_attn\.(value|output)_proj\.weight", UNIFORM, 0.0625),
    (ENCODER + r"fc[12]\.weight", NORMAL, 0.0395),
    (ENCODER + r"fc1\.bias", UNIFORM, 0.0361),
    (ENCODER + r"fc2\.bias", UNIFORM, 0.0180),
    (r"transformer_module\.(queries_embedder|queries_features|level_embed)\.weight", NORMAL, 1),
    (DECODER + r"self_attn\.[qkv]_proj\.weight", NORMAL, 0.0442),
    (DECODER + r"cross_attn\.in_proj_weight", NORMAL, 0.0442),
    (DECODER + r"(self|cross)_attn\.out_proj\.weight", NORMAL, 0.0625),
    (DECODER + r"fc[12]\.weight", NORMAL, 0.0295),
    (DECODER + r"fc1\.bias", UNIFORM, 0.0361),
    (DECODER + r"fc2\.bias", UNIFORM, 0.0128),
    (r"transformer_module\.decoder\.mask_predictor\.mask_embedder\.\d\.0\.(weight|bias)", UNIFORM, 0.0361),
    (r"class_predictor\.(weight|bias)", UNIFORM, 0.0361),
]
ZERO = [
    r"pixel_decoder\.input_projections\.\d\.[01]\.bias",
    r"pixel_decoder\.(adapter|layer)_1\.1\.bias",
    r"pixel_decoder\.mask_projection\.bias",
    ENCODER + r"self_attn\.sampling_offsets\.weight",
    ENCODER + r"self_attn\.attention_weights\.(weight|bias)",
    ENCODER + r"self_attn\.(value|output)_proj\.bias",
    DECODER + r"self_attn\.([qkv]|out)_proj\.bias",
    DECODER + r"cross_attn\.(in_proj_bias|out_proj\.bias)",
    r".*norm\.bias",
]
ONE = [r"pixel_decoder\.(input_projections\.\d|adapter_1|layer_1)\.1\.weight", r".*norm\.weight"]
GRID = [ENCODER + r"self_attn\.sampling_offsets\.bias"]
SMALL = {"width": 32, "queries": 4, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture(scope="module")
def parameters():
    torch.manual_seed(0)
    head = Mask2FormerHead([64] * 4, 19, encoder_layers=2, decoder_layers=2)
    return dict(head.named_parameters())


def chosen(pattern, parameters):
    found = [(name, value.detach().double()) for name, value in parameters.items() if re.fullmatch(pattern, name)]
    assert found
    return found


def small(seed=0, channels=8):
    torch.manual_seed(seed)
    return Mask2FormerHead([channels] * 4, 3, **SMALL)


def test_each_parameter_is_in_one_row_of_the_tables(parameters):
    rows = [pattern for pattern, _, _ in SPREAD] + ZERO + ONE + GRID
    for name in parameters:
        assert len([row for row in rows if re.fullmatch(row, name)]) == 1, name


@pytest.mark.parametrize(("pattern", "kurtosis", "std"), SPREAD)
def test_weights_are_spread_as_published(pattern, kurtosis, std, parameters):
    for name, value in chosen(pattern, parameters):
        count = value.numel()
        error = std * math.sqrt((kurtosis - 1) / (4 * count))  # the standard error of a standard deviation
        assert value.std().item() == pytest.approx(std, abs=0.005 * std + 4 * error), name
        assert abs(value.mean().item()) < 4.5 * std / math.sqrt(count), name
        if kurtosis == UNIFORM:
            assert value.abs().max() <= 1.005 * math.sqrt(3) * std, name
        if count > 100:
            found = ((value - value.mean()) / value.std()).pow(4).mean().item()
            assert found == pytest.approx(kurtosis, abs=min(0.6, 5 * math.sqrt(24 / count))), name


@pytest.mark.parametrize("pattern", ZERO + ONE)
def test_other_weights_are_zero_and_scales_are_one(pattern, parameters):
    for name, value in chosen(pattern, parameters):
        assert torch.equal(value, torch.full_like(value, pattern in ONE)), name


def test_sampling_offsets_start_as_a_grid_of_eight_directions(parameters):
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    offsets = [
        (step * x, step * y) for x, y in directions for _ in range(3) for step in (1, 2, 3, 4)
    ]  # of each attention head, on each of three levels
    for name, value in chosen(GRID[0], parameters):
        expected = torch.tensor(offsets, dtype=torch.float64).flatten()
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0, msg=name)
        assert value.std().item() == pytest.approx(2.378, abs=5e-4)


def test_the_seed_alone_decides():
    first, again, other = (small(seed).state_dict() for seed in (0, 0, 1))
    second = Mask2FormerHead([8] * 4, 3, **SMALL).state_dict()  # the next after seed 1
    drawn = "transformer_module.queries_features.weight"
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not torch.equal(other[drawn], first[drawn])
    assert not torch.equal(other[drawn], second[drawn])


def test_draws_elsewhere_the_precision_and_the_order_of_parts_change_nothing():
    one, other = small(0), small(1).double()
    pixels = other.pixel_decoder
    del other.pixel_decoder
    other.pixel_decoder = pixels  # now the last part
    initialise(one, seed=5)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    initialise(other, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.named_parameters():
        assert torch.equal(other.get_parameter(name), value.double()), name


def test_weights_from_the_parts_own_constructors_do_not_count(monkeypatch):
    expected = small().state_dict()
    make = nn.Linear.reset_parameters
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: (torch.rand(3), make(self)))
    assert all(torch.equal(value, expected[name]) for name, value in small().state_dict().items())


def test_a_parameter_that_the_published_head_lacks_is_refused():
    head = small()
    head.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        initialise(head, seed=0)
