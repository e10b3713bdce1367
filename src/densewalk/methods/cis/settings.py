"""Settings of contextual information separation."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange, deviation
from densewalk.data.amounts import Amount
from densewalk.models.architecture import Architecture
from densewalk.models.families.abilities import WITH_MOTION
from densewalk.models.work import LEARN, Work, conv, kept, parameters, vit
from densewalk.training.settings import PresetSettings

PIXELS = 384 * 192  # that `epsilon` is of


class CisSettings(PresetSettings):
    """Contextual information separation (https://arxiv.org/abs/1901.03360) on videos; defaults are the released recipe's.

    The released code is https://github.com/antonilo/unsupervised_detection at commit 46cae6e. Its networks are convolutional; here the
    generator is a vision transformer with a decoder that also sees the flow.
    """

    SAMPLES: ClassVar[Literal["images", "clips"]] = "clips"
    CUT_FROM: ClassVar[Literal["images", "frames", "timed frames"]] = "frames"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    ADDS: ClassVar[frozenset[str]] = WITH_MOTION
    PICTURES: ClassVar[dict[str, str]] = {
        "masks": "Some frames, and below them the side of the mask that holds less of the frame's border, where it is above 0.1.",
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("flow of PWC-Net", "flow of DIS, filtered by a median of 5 x 5", "its reader of flow"),
        Difference("the inpainter has been trained on flow of other data", "it learns first alone, on boxes", "its README"),
        Difference(
            "a convolutional generator and a large inpainter",
            "a vision transformer with a decoder; a smaller inpainter, which adds to the mean of the visible flow",
            "its networks",
        ),
        Difference(
            "components of the mask are chosen by their overlap with the true object, and refined by a CRF, for its final numbers",
            "the mask as it is",
            "its test script",
        ),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # the released training on DAVIS-2016's frames, by its code at commit 46cae6e: 40 epochs of 5000 samples
        "published": {
            "compat": "released",
            "batch_size": 16,
            "steps": 12_500,
            "height": 192,
            "width": 384,
            "frame_distance": 2,
            "flow_scale": 80.0,
            "epsilon": 75.0,
            "inpainter_steps": 1,
            "generator_steps": 3,
            "clip_value": 0.2,
            "lr": 1e-4,
        },
        # vit_micro_patch16 on a video of minutes
        "small_video": {
            "batch_size": 8,
            "steps": 1500,
            "height": 96,
            "width": 160,
            "flow_height": 240,
            "flow_scale": 40.0,
            "decoder_width": 16,
            "inpainter_width": 8,
            "inpainter_share": 0.25,
            "inpainter_steps": 1,
            "generator_steps": 1,
            "lr": 3e-3,
        },
    }

    batch_size: int = Field(default=16, ge=1)
    """Frames of one optimizer step over all processes together."""
    epochs: Epochs | None = 40
    """Passes over the frames. Exactly one of `epochs`, `steps` and `budget`. A step is one of the inpainter or of the generator."""

    height: int = Field(default=192, ge=16)
    """Height of the network's input in pixels."""
    width: int = Field(default=384, ge=16)
    """Width of the network's input in pixels; frames are resized to it whatever their form."""
    scale: ShareRange = (0.6, 1.0)
    """Share of both of the frame's sides that a crop covers, from and to."""
    frame_distance: int = Field(default=2, ge=1)
    """Largest distance of the two frames of a pair, before or after."""
    flow_height: int = Field(default=480, ge=64)
    """Higher frames are reduced to this height before flow is computed, so that its pixels are DAVIS's."""
    flow_scale: float = Field(default=80.0, gt=0)
    """Pixels of flow that are 1 in the losses and in the inpainter's input."""
    epsilon: float = Field(default=75.0, gt=0)
    """Added to the generator's denominators, for 384 x 192 px; taken in proportion to the pixels of the input."""

    decoder_width: int = Field(default=32, ge=8, multiple_of=8)
    """Channels of the generator's decoder at a quarter of the input's sides, twice as many at an eighth."""
    inpainter_width: int = Field(default=32, ge=1)
    """Channels of the inpainter's first stage; the last has four times as many."""
    inpainter_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps, the first ones, in which the inpainter learns alone, with random boxes for masks."""
    inpainter_steps: int = Field(default=1, ge=1)
    """Steps of the inpainter before each turn of the generator."""
    generator_steps: int = Field(default=3, ge=1)
    """Steps of the generator in its turn."""

    clip_value: float = Field(default=0.2, gt=0)
    """Each element of a gradient is clipped to this absolute value."""
    noise_where_flat: bool | None = deviation(
        effect="a mask of all or nothing, where the loss is flat, is left by chance", source="its training loop"
    )
    """Where the mean absolute gradient of the generator is below 1e-5, put random numbers from 0 to `clip_value` in its place."""
    lr: LearningRate = Field(default=1e-4, gt=0)
    """Learning rate of Adam for both networks, constant."""

    @property
    def scaled_epsilon(self) -> float:
        """`epsilon` for this size of input."""
        return self.epsilon * self.height * self.width / PIXELS

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"height": self.height, "width": self.width}

    def across_samples(self) -> str | None:
        """Nothing: both losses are means over frames."""
        return None

    def ceilings(self) -> dict[str, Ceiling]:
        """The generator's loss where the inpainter is perfect, and even sides."""
        return {
            "loss_generator": Ceiling(2.0, "2, an inpainter that tells everything"),
            "smaller_side": Ceiling(0.5, "half of each frame"),
        }

    def samples(self, amount: Amount) -> int:
        """Every frame of a video."""
        return amount.frames

    def step_work(self, arch: Architecture) -> Work:
        """A mean step: the inpainter predicts three times. In the generator's turns it does not learn, and one needs no gradient."""
        turn = (1 - self.inpainter_share) * self.generator_steps / (self.inpainter_steps + self.generator_steps)
        masked = 1 - self.inpainter_share
        generator = vit(arch, self.height, self.width) + self._decoder(arch)
        predictions = LEARN * 3 * (1 - turn) + (2 * 2 + 1) * turn
        flops = self.batch_size * (generator * (masked + turn * (LEARN - 1)) + predictions * self._inpainter())
        values, pixels = self.batch_size * kept(arch, self.height, self.width), self.batch_size * self.height * self.width
        # values of a pixel outside of the blocks, by a count at several widths: those of the turn that keeps more
        in_its_turn = pixels * (36 + 13 * self.inpainter_width) - values
        outside = max(in_its_turn, pixels * (31 + 7 * self.inpainter_width + 1.3 * self.decoder_width))
        learnt = parameters(arch) + 1750 * self.inpainter_width**2 + 250 * self.decoder_width**2
        return Work(flops, kept=values + outside, outside=outside, learnt=learnt)

    def _decoder(self, arch: Architecture) -> float:
        w, pixels = self.decoder_width, self.height * self.width
        features = conv((self.height // arch.patch) * (self.width // arch.patch), arch.dim, 2 * w)
        fine = conv(pixels / 4, 2, w, 5) + conv(pixels / 16, w, w, 3) + conv(pixels / 16, 3 * w, w, 3) + conv(pixels / 16, w, 2, 3)
        coarse = conv(pixels / 64, w, 2 * w, 3) + conv(pixels / 64, 4 * w, 2 * w, 3) + 3 * conv(pixels / 64, 2 * w, 2 * w, 3)
        return features + fine + coarse

    def _inpainter(self) -> float:
        w, pixels = self.inpainter_width, self.height * self.width
        down = conv(pixels / 4, 3 + 4, w, 7) + 2 * (
            conv(pixels / 16, w, 2 * w, 5) + conv(pixels / 64, 2 * w, 4 * w, 3) + conv(pixels / 256, 4 * w, 4 * w, 3)
        )
        context = conv(pixels / 256, 8 * w, 4 * w, 3) + 2 * conv(pixels / 256, 4 * w, 4 * w, 3)
        up = conv(pixels / 64, 12 * w, 4 * w, 3) + conv(pixels / 16, 8 * w, 2 * w, 3) + conv(pixels / 4, 4 * w, w, 3)
        return down + context + up + conv(pixels / 4, w, 2, 3)


SETTINGS = CisSettings
