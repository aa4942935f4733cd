"""Parameters of half precision, in their own type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16
from tests.compression.test_training_masks import network
from torch import nn

from dcz.compression.training.masks import prune
from dcz.compression.training.rate import RateAware
from dcz.compression.training.rounding import Short, round_parameters
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.errors import EncodingError


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_every_parameter_has_the_nearest_value(dtype: Short) -> None:
    module = network()
    module.append(nn.BatchNorm1d(4))
    module[-1].running_mean.fill_(0.1)  # type: ignore[operator]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rounded = round_parameters(module, dtype)
    assert sorted(rounded) == sorted(dict(module.named_parameters()))
    short = bfloat16 if dtype == "bf16" else np.float16
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype
        expected = before[name].numpy()
        if name in rounded:
            expected = expected.astype(short).astype(np.float32)
        assert np.array_equal(value.numpy(), expected)


def test_shared_values_are_rounded_and_pruned_weights_stay_pruned() -> None:
    module = network()
    weights = find_weights(module)
    prune(weights, 0.3)
    share(weights[:2], 3)
    masks = [weight.value() != 0 for weight in weights]
    rounded = round_parameters(
        module, "bf16", lambda names, elements: "4.weight" not in names and elements > 4
    )
    assert sorted(rounded) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    remove_parametrizations(module)
    for weight, mask in zip(weights, masks, strict=True):
        assert torch.equal(weight.parameter != 0, mask)
        short = torch.equal(weight.parameter, weight.parameter.bfloat16().float())
        assert short == (weight.name != "4.weight")


def test_tied_parameters_go_by_any_name() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight, module[1].bias = module[0].weight, module[0].bias
    assert round_parameters(module, "bf16", lambda names, _: "1.bias" in names) == ("0.bias",)


def test_what_is_too_large_is_refused_before_anything_is_changed() -> None:
    module = network()
    last = list(module.parameters())[-1]
    last.data[0] = 1e6
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(EncodingError, match=r"4\.bias holds a value that f16 does not have"):
        round_parameters(module, "f16")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_shorter_types_are_left_alone() -> None:
    module = nn.Linear(3, 3).to(torch.float16)
    assert round_parameters(module, "bf16") == ()


def test_what_is_trained_against_its_size_is_left_alone() -> None:
    module = network()
    aware = RateAware(module)
    before = [weight.value().clone() for weight in find_weights(module)]
    assert aware is not None
    assert round_parameters(module, "bf16") == ()
    for weight, value in zip(find_weights(module), before, strict=True):
        assert torch.equal(weight.value(), value)
