"""Views of all methods: made together from uint8 crops, they are what a data loader would have made of each image by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from densewalk.data.augmentation import colors
from densewalk.data.augmentation.views import make_views
from densewalk.methods.dino import augmentation as dino
from densewalk.methods.dora import augmentation as dora
from densewalk.methods.neco import augmentation as neco
from densewalk.methods.neco.settings import NecoSettings
from densewalk.methods.timetuning import clips as timetuning
from densewalk.training.sampler import Item, StepSampler
from tests.fixtures import plain_views
from tests.fixtures.helpers import require_cuda
from tests.fixtures.methods.dino import small_settings as dino_settings
from tests.fixtures.methods.dora import small_settings as dora_settings
from tests.fixtures.methods.neco import SMALL
from tests.fixtures.methods.timetuning import small as timetuning_settings

CPU = torch.device("cpu")
COUNT = 6


class Smooth(Dataset[Tensor]):
    """Smooth random images with some noise, as photographs have."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Tensor:
        g = torch.Generator().manual_seed(index)
        *frames, channels, height, width = self.shape
        coarse = torch.rand(*(frames or [1]), channels, 6, 8, generator=g)
        x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") * 255
        x = (x + 5 * torch.randn(x.shape, generator=g)).clamp(0, 255).byte()
        return x if frames else x[0]


@dataclass(frozen=True)
class Case:
    """A method's data set, what makes its views, and one sample's views by `plain_views`."""

    data: Any
    prepare: Callable[[Any, torch.device], Any]
    plain: Callable[[Item], Any]


def dino_case() -> Case:
    settings, images = dino_settings(), Smooth(3, 90, 120)
    return Case(dino.DinoCrops(images, settings), make_views, lambda item: plain_views.dino(images[item.index], settings, item.seed))


def dora_case() -> Case:
    settings, clips = dora_settings(global_views=2).resolved(), Smooth(3, 3, 90, 120)
    data = dora.DoraClips(clips, settings)
    plain = plain_views.dora
    return Case(data, lambda b, device: dora.make_views(b, settings, device), lambda item: plain(clips[item.index], settings, item.seed))


def neco_case() -> Case:
    settings, images = NecoSettings(**SMALL), Smooth(3, 90, 120)
    return Case(neco.NecoCrops(images, settings), neco.make_views, lambda item: plain_views.neco(images[item.index], settings, item.seed))


def timetuning_case() -> Case:
    settings, clips = timetuning_settings(compat="released").resolved(), Smooth(3, 3, 90, 120)
    videos = [timetuning.Video(lambda _, i=i: clips[i], 0, 3) for i in range(COUNT)]  # as many frames as a clip: one choice, drawn first

    def plain(item: Item) -> Tensor:
        frames = torch.Generator().manual_seed(item.seed)
        timetuning.sample_frames(3, settings, frames)
        return plain_views.timetuning(clips[item.index], settings, frames)

    data = timetuning.ClipDataset(videos, settings)
    return Case(data, lambda b, device: timetuning.make_views(b, settings, device), plain)


CASES = {"dino": dino_case, "dora": dora_case, "neco": neco_case, "timetuning": timetuning_case}
ITEMS = [Item(i % COUNT, seed=100 + i) for i in range(10)]


def named(views: Any) -> dict[str, Tensor]:
    return views if isinstance(views, dict) else {"views": views}


@pytest.mark.parametrize("name", CASES)
def test_views_equal_the_plain_ones_of_the_same_seed(name: str) -> None:
    case = CASES[name]()
    views = named(case.prepare(default_collate([case.data[item] for item in ITEMS]), CPU))
    for i, item in enumerate(ITEMS):
        for kind, expected in named(case.plain(item)).items():
            assert views[kind][i].shape == expected.shape
            if name == "neco":  # levels: float32 and float64 may round apart
                apart = (views[kind][i].int() - expected.int()).abs()
                assert apart.max() <= 1
                assert (apart > 0).float().mean() < 1e-3
            else:
                torch.testing.assert_close(views[kind][i].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_views_made_together_equal_those_made_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    batch = default_collate([case.data[item] for item in ITEMS])
    before = {key: value.clone() for key, value in batch.items()}
    alone = named(case.prepare(batch, CPU))
    monkeypatch.setattr(colors, "at_once", lambda device: 7)  # as on a GPU, which takes more at a time
    monkeypatch.setattr(colors, "use_cpu_kernels", lambda device: False)
    together = named(case.prepare(batch, CPU))
    for kind, views in alone.items():
        atol = 1 if views.dtype == torch.uint8 else 1e-5
        torch.testing.assert_close(together[kind], views, rtol=0, atol=atol)
        assert (together[kind].float() - views.float()).abs().mean() < 1e-4
    assert all(torch.equal(batch[key], before[key]) for key in batch), "the batch is left as it is"


@pytest.mark.parametrize("name", CASES)
def test_a_sample_is_pixels_in_8_bits_and_few_numbers(name: str) -> None:
    sample = CASES[name]().data[ITEMS[0]]
    pixels = sum(x.nbytes for x in sample.values() if x.dtype == torch.uint8)
    others = sum(x.nbytes for x in sample.values() if x.dtype != torch.uint8)
    assert others < 0.25 * pixels, "at 32 px; at the papers' sizes less than a hundredth"
    assert not any(x.dtype == torch.float32 and x.shape[-1] > 12 for x in sample.values())


@pytest.mark.parametrize("name", CASES)
def test_samples_are_the_same_from_any_number_of_processes_and_after_a_resume(name: str) -> None:
    data = CASES[name]().data
    batches = {}
    for workers, first in ((0, 0), (2, 0), (2, 3)):
        sampler = StepSampler(len(data), 2, 5, first, 6)
        batches[workers, first] = list(DataLoader(data, batch_sampler=sampler, num_workers=workers))
    for one, other in zip(batches[0, 0], batches[2, 0], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    for one, other in zip(batches[0, 0][3:], batches[2, 3], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_views_on_a_gpu_equal_those_on_the_cpu(name: str) -> None:
    device = require_cuda()
    case = CASES[name]()
    batch = default_collate([case.data[item] for item in ITEMS])
    for kind, views in named(case.prepare(batch, CPU)).items():
        found = named(case.prepare(batch, device))[kind].cpu().float()
        assert (found - views.float()).abs().mean() < 2e-3 * (255 if views.dtype == torch.uint8 else 1)
