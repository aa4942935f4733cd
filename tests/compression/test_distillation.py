"""Distillation against closed forms, finite differences, and a network that learns by it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn
from torch.nn import functional

from dcz.compression.training.distillation import Teacher, distillation_loss, divergence
from dcz.compression.training.learned_step import learn_steps
from dcz.compression.training.weights import find_weights
from dcz.errors import UsageError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
def test_divergence_is_the_sum_of_its_terms(shape: tuple[int, ...], temperature: float) -> None:
    z, v = scores(*shape), scores(*shape, seed=1)
    p, q = (scipy.special.softmax(part.numpy() / temperature, axis=-1) for part in (v, z))
    expected = temperature**2 * scipy.special.rel_entr(p, q).sum(-1).mean()
    assert float(divergence(z, v, temperature)) == pytest.approx(expected)


def test_alpha_one_is_the_cross_entropy() -> None:
    z, v, targets = scores(7, 5), scores(7, 5, seed=1), torch.arange(7) % 5
    found = distillation_loss(z, v, targets, alpha=1.0, temperature=1.0)
    assert torch.equal(found, functional.cross_entropy(z, targets))
    # And at a temperature of 1, with a teacher that is sure, all of it is.
    sure = torch.where(functional.one_hot(targets, 5).bool(), 0.0, -1e9).double()
    for alpha in (0.0, 0.5):
        found = distillation_loss(z, sure, targets, alpha=alpha, temperature=1.0)
        torch.testing.assert_close(found, functional.cross_entropy(z, targets))


def test_gradients_against_finite_differences() -> None:
    v, targets = scores(4, 3, seed=1), torch.tensor([0, 2, 1, 1])
    z = scores(4, 3).requires_grad_()

    def loss(z: torch.Tensor) -> torch.Tensor:
        return distillation_loss(z, v, targets, alpha=0.3, temperature=2.5)

    assert torch.autograd.gradcheck(loss, (z,))
    loss(z).backward()
    # Hinton, Vinyals and Dean, equation 2: T (q - p), over the number of cases.
    p, q = (functional.softmax(part / 2.5, 1) for part in (v, z.detach()))
    hard = functional.softmax(z.detach(), 1) - functional.one_hot(targets, 3)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, (0.3 * hard + 0.7 * 2.5 * (q - p)) / 4)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4))


def test_features_are_compared() -> None:
    dense, small = network(), network(1)
    x = torch.randn(9, 6)
    teacher = Teacher(dense, features=["2", "0"], alpha=0.0, feature_weight=0.5)
    targets = torch.zeros(9, dtype=torch.long)
    with teacher.watching(small) as watched:
        found = watched.loss(small.eval()(x), x, targets)
    dense.eval()
    first = functional.mse_loss(small[0](x), dense[0](x))
    later = functional.mse_loss(small[:3](x), dense[:3](x))
    expected = divergence(small(x), dense(x), 4.0) + 0.5 * (first + later)
    torch.testing.assert_close(found, expected)
    assert not any(part._forward_hooks for part in [*dense.modules(), *small.modules()])


def test_the_teacher_is_left_as_it_was() -> None:
    dense, small = network().train(), network(1)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    with Teacher(dense).watching(small) as watched:
        watched.loss(small(torch.randn(9, 6)), torch.randn(9, 6)).backward()
    assert dense.training
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_quantized_network_learns_from_the_dense_one() -> None:
    dense = network().eval()
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    small = copy.deepcopy(dense)
    learn_steps(find_weights(small), 2)
    optimizer = torch.optim.Adam(small.parameters(), 0.003)
    losses = []
    with Teacher(dense, features={"2": "2"}).watching(small) as watched:
        for _ in range(80):
            optimizer.zero_grad()
            loss = watched.loss(small(x), (x,))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    agree = (small(x).argmax(1) == dense(x).argmax(1)).float().mean()
    assert float(agree) > 0.75


def test_wrong_use() -> None:
    z = scores(3, 2)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="a temperature of"):
            divergence(z, z, wrong)
    with pytest.raises(UsageError, match=r"an alpha of 1\.5"):
        distillation_loss(z, z, torch.zeros(3, dtype=torch.long), alpha=1.5)
    with pytest.raises(UsageError, match="no module 'nine' in the Sequential"):
        Teacher(network(), features=["nine"])
    teacher = Teacher(network(), features={"first": "0"})
    with pytest.raises(UsageError, match="no module 'first'"), teacher.watching(network()):
        pass
    teacher = Teacher(network(), features=["0"])
    with teacher.watching(network()) as watched:
        x = torch.randn(4, 6)
        with pytest.raises(UsageError, match="'0' has put out no tensor"):
            watched.loss(torch.randn(4, 4), x)


def test_other_losses() -> None:
    z, v, targets = scores(6, 3), scores(6, 3, seed=1), torch.arange(6) % 3

    def smoothed(z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(z, targets, label_smoothing=0.1)

    found = distillation_loss(z, v, targets, alpha=0.25, temperature=1.0, hard=smoothed)
    np.testing.assert_allclose(
        float(found), 0.25 * float(smoothed(z, targets)) + 0.75 * float(divergence(z, v))
    )
