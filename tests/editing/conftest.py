"""A small BatchNorm net that knows the digits, trained once, and the digits as other cameras show them."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nfopt.data import ImageData, Split, load_data
from nfopt.editing import Domain
from nfopt.models import cnn


@dataclass(frozen=True)
class Digits:
    model: nn.Module
    data: ImageData
    mean: Tensor
    deviation: Tensor

    def prepared(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation

    @property
    def source(self) -> Split:
        val = self.data.val
        return Split(self.prepared(val.images), val.labels)

    def domain(self, text: str, count: int = 64) -> tuple[Split, Split]:
        """Return target images to adapt to, and others to test on."""
        domain, generator = Domain.parse(text), torch.Generator().manual_seed(0)
        return tuple(
            Split(self.prepared(domain(split.images, generator)), split.labels)
            for split in (self.data.val[torch.arange(count)], self.data.test)
        )


@pytest.fixture(scope="session")
def trained_digits() -> Digits:
    data = load_data("digits", standardize=False)
    mean, deviation = data.train.images.mean(), data.train.images.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cnn((1, 8, 8), 10, channels=(7, 13, 17)).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(120):
            index = torch.randint(0, len(data.train), (64,))
            batch = data.train[index]
            loss = functional.cross_entropy(model((batch.images - mean) / deviation), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Digits(model.eval(), data, mean, deviation)


@pytest.fixture
def digits(trained_digits: Digits) -> Digits:
    """Return the digits with a model that the test may change."""
    whole = trained_digits
    return Digits(copy.deepcopy(whole.model), whole.data, whole.mean, whole.deviation)
