"""One training of each method, with decoded noise for data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from densewalk.data.sources import SpacedImages
from densewalk.data.stretches import Video
from densewalk.methods.cis.method import Cis
from densewalk.methods.cis.pairs import FlowPairs
from densewalk.methods.cis.settings import CisSettings
from densewalk.methods.crw.clips import WalkClips
from densewalk.methods.crw.method import Crw
from densewalk.methods.crw.settings import CrwSettings
from densewalk.methods.dino.augmentation import DinoCrops
from densewalk.methods.dino.method import Dino
from densewalk.methods.dino.settings import DinoSettings
from densewalk.methods.dinov2.method import DinoV2
from densewalk.methods.dinov2.settings import DinoV2Settings
from densewalk.methods.dora.augmentation import DoraClips
from densewalk.methods.dora.method import Dora
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.ibot.augmentation import MaskedCrops
from densewalk.methods.ibot.method import MaskedDistillation
from densewalk.methods.ibot.settings import IbotSettings
from densewalk.methods.mae.augmentation import MaeCrops
from densewalk.methods.mae.method import Mae
from densewalk.methods.mae.settings import MaeSettings
from densewalk.methods.mocov3.method import ByolViews, MocoV3
from densewalk.methods.mocov3.settings import MocoV3Settings
from densewalk.methods.mosic.clips import TrackDataset, Tracked
from densewalk.methods.mosic.method import Mosic
from densewalk.methods.mosic.settings import MosicSettings
from densewalk.methods.neco.augmentation import NecoCrops
from densewalk.methods.neco.method import Neco
from densewalk.methods.neco.settings import NecoSettings
from densewalk.methods.paka.augmentation import PakaCrops
from densewalk.methods.paka.method import Paka
from densewalk.methods.paka.settings import PakaSettings
from densewalk.methods.simclr.method import Simclr, SimclrViews
from densewalk.methods.simclr.settings import SimclrSettings
from densewalk.methods.timetuning.clips import ClipDataset
from densewalk.methods.timetuning.method import TimeTuning
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models.architecture import Architecture, architecture_named
from densewalk.models.loading import create
from densewalk.training.method import Method
from densewalk.training.sampler import Item
from densewalk.training.settings import TrainingSettings

STEPS = 100
COARSE = 24  # pixels between two values of the noise: neighboring patches look alike, as in photographs


class Decoded(Dataset[Tensor]):
    """Smooth noise in the size of decoded images [3, height, width] or clips [frames, 3, height, width], a few different ones."""

    def __init__(self, *shape: int, different: int = 8) -> None:
        *frames, height, width = shape
        g = torch.Generator().manual_seed(0)
        coarse = torch.rand(different * (frames or [1])[0], 3, height // COARSE + 2, width // COARSE + 2, generator=g)
        pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").mul(255).byte()
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # as readers give it
        self.samples = [*pixels] if not frames else [*pixels.unflatten(0, (different, frames[0]))]

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Tensor:
        return self.samples[index % len(self.samples)]

    def frames(self, index: int, wanted: Sequence[int]) -> Tensor:
        """Some frames of a clip."""
        return self[index][[number % len(self[index]) for number in wanted]]


@dataclass(frozen=True)
class Training:
    """A method with its settings and backbone. data: its data set of the samples."""

    name: str
    settings: TrainingSettings
    arch: Architecture
    kind: Callable[..., Method]
    data: "Dataset[Any]"

    def method(self, **options: Any) -> Method:
        """The method with the same new weights at each call."""
        return self.kind(self.settings, create(self.arch.name, seed=0, **options), STEPS, STEPS, 0)

    def batch(self) -> dict[str, Tensor]:
        """A batch as a loader gives it."""
        return default_collate([self.data[Item(i, seed=i)] for i in range(self.settings.batch_size)])


def dino(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """DINO."""
    s = DinoSettings(steps=STEPS, warmup_epochs=0, freeze_last_layer_epochs=0, **settings)
    return Training("DINO", s, architecture_named(arch), Dino, DinoCrops(Decoded(*image), s))


def dora(arch: str, image: tuple[int, int] = (540, 960), **settings: Any) -> Training:
    """DoRA."""
    s = DoraSettings(steps=STEPS, warmup_epochs=0, freeze_last_layer_epochs=0, **settings)
    return Training("DoRA", s, architecture_named(arch), Dora, DoraClips(Decoded(s.frames, *image), s.resolved()))


def neco(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """NeCo."""
    s = NecoSettings(steps=STEPS, **settings)
    return Training("NeCo", s, architecture_named(arch), Neco, NecoCrops(Decoded(*image), s))


def timetuning(arch: str, image: tuple[int, int] = (480, 854), **settings: Any) -> Training:
    """Time-Tuning."""
    s = TimeTuningSettings(steps=STEPS, **settings)
    clips = Decoded(s.frames, *image)
    videos = [Video(partial(clips.frames, i), 0, 100) for i in range(len(clips.samples))]
    return Training("Time-Tuning", s, architecture_named(arch), TimeTuning, ClipDataset(videos * STEPS * s.batch_size, s.resolved()))


def mae(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """MAE."""
    s = MaeSettings(steps=STEPS, warmup_epochs=0, **settings)
    return Training("MAE", s, architecture_named(arch), Mae, MaeCrops(Decoded(*image), s))


def simclr(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """SimCLR."""
    s = SimclrSettings(steps=STEPS, warmup_epochs=0, **settings)
    return Training("SimCLR", s, architecture_named(arch), Simclr, SimclrViews(SpacedImages([Decoded(*image)], 0.0), s))


def mocov3(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """MoCo v3."""
    s = MocoV3Settings(steps=STEPS, warmup_epochs=0, **settings)
    return Training("MoCo v3", s, architecture_named(arch), MocoV3, ByolViews(SpacedImages([Decoded(*image)], 0.0), s))


def ibot(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """iBOT."""
    s = IbotSettings(steps=STEPS, warmup_epochs=0, freeze_last_layer_epochs=0, **settings)
    return Training("iBOT", s, architecture_named(arch), MaskedDistillation, MaskedCrops(Decoded(*image), s))


def dinov2(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """DINOv2."""
    s = DinoV2Settings(steps=STEPS, warmup_epochs=0, freeze_last_layer_epochs=0, epoch_steps=None, **settings)
    return Training("DINOv2", s, architecture_named(arch), DinoV2, MaskedCrops(Decoded(*image), s))


def paka(arch: str, image: tuple[int, int] = (480, 640), **settings: Any) -> Training:
    """PaKA."""
    s = PakaSettings(steps=STEPS, warmup_epochs=0, freeze_last_layer_epochs=0, epoch_steps=None, **settings)
    return Training("PaKA", s, architecture_named(arch), Paka, PakaCrops(Decoded(*image), s))


def crw(arch: str, image: tuple[int, int] = (270, 480), **settings: Any) -> Training:
    """The contrastive random walk."""
    s = CrwSettings(steps=STEPS, **settings)
    return Training("CRW", s, architecture_named(arch), Crw, WalkClips(Decoded(s.frames, *image), s))


def mosic(arch: str, image: tuple[int, int] = (480, 854), **settings: Any) -> Training:
    """MoSiC, with tracks by optical flow."""
    s = MosicSettings(steps=STEPS, frame_step=1, **settings)
    clips = Decoded(s.frames, *image)
    videos = [Tracked(Video(partial(clips.frames, i), 0, s.span), np.zeros(1, np.int64)) for i in range(len(clips.samples))]
    return Training("MoSiC", s, architecture_named(arch), Mosic, TrackDataset(videos * STEPS * s.batch_size, s.resolved()))


def cis(arch: str, image: tuple[int, int] = (480, 854), **settings: Any) -> Training:
    """CIS, with flow by DIS; every step is the inpainter's or, where it is odd, the generator's."""
    s = CisSettings(steps=STEPS, inpainter_share=0.0, generator_steps=1, **settings)
    clips = Decoded(2, *image)
    videos = [Video(partial(clips.frames, i), 0, 2) for i in range(len(clips.samples))]
    return Training("CIS", s, architecture_named(arch), Cis, FlowPairs(videos * STEPS * s.batch_size, s.resolved()))


def small(**changes: Any) -> list[Training]:
    """All methods at a size that one CPU core computes in a second."""
    head = {"out_dim": 256, "head_hidden": 64, "head_bottleneck": 32, "drop_path": 0.0}
    views = {"batch_size": 2, "global_size": 64, "local_size": 32, "local_crops": 2}
    arch, image = "vit_nano_patch16", (96, 128)
    return [
        dino(arch, image, **head, **views),
        dora(arch, image, **head, **views, frames=2),
        neco(arch, image, **views, drop_path=0.0, queue=64, head_hidden=64, head_out=32),
        timetuning(arch, image, batch_size=2, size=48, head_widths=[64, 32], prototypes=8, frames=3, **changes),
        mae(arch, image, batch_size=2, size=64, decoder_dim=48, decoder_depth=1, decoder_heads=4),
        simclr(arch, image, batch_size=16, size=64, projector_hidden=64, out_dim=32),
        mocov3(arch, image, batch_size=16, size=64, projector_hidden=64, predictor_hidden=64, out_dim=32),
        ibot(arch, image, **head, **views),
        dinov2(arch, image, **head, **views),
        paka(arch, image, **head, **views, aligned_crops=2, paka_hidden=64, paka_out=32),
        crw(arch, image, batch_size=2, size=64, node_size=32, node_stride=32, out_dim=32, edge_dropout=0.0),
        mosic(arch, image, batch_size=2, size=48, head_widths=[64, 32], prototypes=8, frames=3, grid=4),
        cis(arch, image, batch_size=2, height=32, width=48, decoder_width=8, inpainter_width=8),
    ]


def medium() -> list[Training]:
    """All methods with a ViT-S and few images: what a CPU beside a GPU computes in seconds."""
    arch, head = "vit_small_patch16", {"out_dim": 4096, "drop_path": 0.0}
    return [
        dino(arch, batch_size=4, local_crops=2, **head),
        dora(arch, batch_size=2, local_crops=2, frames=4, **head),
        neco("vit_small_patch14_reg4", batch_size=4, global_size=224, drop_path=0.0),
        timetuning(arch, batch_size=4),
        mae(arch, batch_size=4),
        simclr(arch, batch_size=16),
        mocov3(arch, batch_size=16),
        ibot(arch, batch_size=4, local_crops=2, **head),
        dinov2(arch, batch_size=4, local_crops=2, **head),
        paka(arch, batch_size=4, local_crops=2, global_size=224, local_size=112, aligned_crops=4, **head),
        crw(arch, batch_size=2, edge_dropout=0.0),
        mosic(arch, batch_size=4, frames=4),
        cis(arch, batch_size=4),
    ]


def shares() -> list[Training]:
    """All methods as published, with the share of the batch that one of the papers' GPUs has."""
    per_gpu = {"dino": DinoSettings(), "dora": DoraSettings(), "timetuning": TimeTuningSettings(steps=STEPS)}
    share = {name: s.batch_size // s.RESOURCES.gpu for name, s in per_gpu.items()}
    return [
        dora("vit_small_patch16", batch_size=share["dora"], compat="released"),
        neco("vit_small_patch14_reg4"),
        dino("vit_small_patch16", batch_size=share["dino"]),
        timetuning("vit_small_patch16", batch_size=share["timetuning"]),
    ]
