"""What an evaluation may ask of a network, whatever its family.

network = load("backbone.safetensors")              # or create(NAME, seed=0), see loading.py
maps = network.dense(images)                        # [batch, dim, height / stride, width / stride]
vectors = network.pooled(images)                    # [batch, pooled_dim]

Images are normalized with `network.statistics` (data/images.py), their sides multiples of `network.multiple`. What else a network gives
is in `network.abilities`; an evaluation's settings say what they need (`EvaluationSettings.needs`). `densewalk check` compares the two by
the names of study and architecture (abilities.py), and `require_abilities` again with the network at hand.

A family is a subclass of `Network` and a frozen dataclass with the facts of `Shape`; `loading.build_network` makes the one from the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from jaxtyping import Float
from torch import Tensor, nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.architecture import Shape
from densewalk.models.families.abilities import ABILITIES


@dataclass(frozen=True)
class LoadReport:
    """Which of a file's tensors were loaded."""

    source: str
    network: str
    taken: int  # number of tensors
    parameters: int
    dropped: dict[str, int] = field(default_factory=dict)  # groups of tensors that are not the backbone's, and their numbers
    changed: list[str] = field(default_factory=list)  # in words: renamed, folded or taken in another size

    def __str__(self) -> str:
        network = f" of network {self.network}" if self.network else ""
        parts = [f"{self.source}: {self.taken} tensors{network} taken ({self.parameters:,} parameters)"]
        if self.dropped:
            parts.append("not taken: " + ", ".join(f"{name} ({count})" for name, count in self.dropped.items()))
        return "; ".join([*parts, *self.changed])


class Network(nn.Module):
    """A backbone as evaluations see it: a torch module.

    Attributes:
        arch: name and shape.
        dim: channels of `dense`.
        stride: pixels per position of `dense`.
        pooled_dim: length of `pooled`.
        multiple: the sides of images are multiples of it, in pixels.
        size: the only side that images may have, in pixels; None for any.
        statistics: mean and standard deviation that images in 0..1 are normalized with, for red, green and blue.
        heads: of the attention; 0 without.
        abilities: what it can give: `dense`, `pooled`, `levels`, `block_tokens`, `keys`, `attention`.
        report: which tensors of which file were loaded; None for new weights.
    """

    def __init__(self, arch: Shape) -> None:
        super().__init__()
        self.arch = arch
        self.dim, self.stride, self.pooled_dim = arch.dim, arch.stride, arch.pooled_dim
        self.multiple, self.size, self.heads = arch.multiple, arch.size, arch.heads
        self.statistics: PixelStatistics = arch.statistics
        self.abilities: frozenset[str] = arch.abilities
        self.report: LoadReport | None = None

    @property
    def depth(self) -> int:
        """Number of levels: blocks of a vision transformer, stages of a hierarchical network."""
        return len(self.arch.level_dims)

    @property
    def source(self) -> str:
        """The file that the weights are from, for messages."""
        return self.report.source if self.report else f"{self.arch.name} with new weights"

    def require_abilities(self, needed: Iterable[str], by: str) -> None:
        """Require that the network can give what an evaluation needs.

        Args:
            needed: names of abilities.
            by: what needs them, for the message.

        Raises:
            UserError: the network lacks one.
        """
        if missing := sorted(set(needed) - self.abilities):
            raise UserError(
                f"{by} needs {' and '.join(ABILITIES[name] for name in missing)}, which {self.arch.name} ({self.source}) has not",
                allowed="networks that have it, see docs/checkpoints_and_data.md",
                todo="leave this run out of the evaluation's `runs`",
            )

    def require_size(self, height: int, width: int) -> None:
        """Raise UserError if images may not have this size."""
        if height % self.multiple or width % self.multiple:
            raise UserError(f"image of {height} x {width} px for {self.arch.name}", allowed=f"sides that are multiples of {self.multiple}")
        if self.size is not None and (height, width) != (self.size, self.size):
            raise UserError(f"image of {height} x {width} px for {self.arch.name}", allowed=f"{self.size} x {self.size} px alone")

    def probe(self) -> None:
        """Require that the network gives what it says; the families of this project do, a network of the user's own is tried out."""

    # -- files -----------------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, str]:
        """What a file of the weights must say besides the architecture's name, so that loading it gives the same network."""
        return self.arch.metadata()

    def weights(self) -> dict[str, Tensor]:
        """The state dict with timm's key names, which exports hold."""
        raise NotImplementedError(f"{type(self).__name__} has no weights to export")

    # -- abilities: every network has the first three -----------------------------------------------------------------

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Compute the map of features that frozen evaluations take (ability `dense`).

        Args:
            images: normalized by `statistics`, on the network's device; sides are multiples of `multiple`.

        Returns:
            height / stride rows and width / stride columns of features.
        """
        self._lacks("dense")

    def pooled(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch pooled_dim"]:
        """Compute one vector for each image (ability `pooled`): the CLS token of a vision transformer, the mean of the last map of a CNN.

        Args:
            images: normalized by `statistics`, on the network's device; sides are multiples of `multiple`.

        Returns:
            a row for each image.
        """
        self._lacks("pooled")

    def levels(
        self, images: Float[Tensor, "batch 3 height width"], numbers: Sequence[int], *, norm: bool
    ) -> list[Float[Tensor, "batch _dim _rows _columns"]]:
        """Maps of some levels (ability `levels`), ascending: blocks of a vision transformer, stages of a hierarchical network.

        Their channels and strides are `arch.level_dims` and `arch.level_strides`. norm: apply the network's final norm to each map; only
        networks whose levels all have the final norm's width have it there.
        """
        self._lacks("levels")

    def levels_with_cls(
        self, images: Float[Tensor, "batch 3 height width"], numbers: Sequence[int], *, norm: bool
    ) -> list[tuple[Float[Tensor, "batch dim rows columns"], Float[Tensor, "batch dim"]]]:
        """`levels`, each with the CLS token after that block (ability `block_tokens`)."""
        self._lacks("block_tokens")

    def block_tokens(self, images: Float[Tensor, "batch 3 height width"], blocks: int) -> Float[Tensor, "batch tokens dim"]:
        """CLS after each of the last `blocks` blocks, then the last block's mean patch token, all after the final norm (`block_tokens`)."""
        self._lacks("block_tokens")

    def keys(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """Keys of the last block's attention for all patches, heads side by side, before rotary positions (ability `keys`)."""
        self._lacks("keys")

    def projections(
        self, images: Float[Tensor, "batch 3 height width"], kind: Literal["queries", "keys", "values"]
    ) -> Float[Tensor, "batch patches dim"]:
        """The same of the queries or values (ability `keys`)."""
        self._lacks("keys")

    def motion_masks(
        self, images: Float[Tensor, "batch 3 height width"], flow: Float[Tensor, "batch 2 height width"]
    ) -> Float[Tensor, "batch 1 height width"]:
        """Share of each pixel in the first of two sides that move differently, 0 to 1 (ability `motion_masks`). flow: in any unit."""
        self._lacks("motion_masks")

    def dense_and_attention(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch dim rows columns"], Float[Tensor, "batch heads rows columns"]]:
        """`dense`, and the CLS token's attention to each position in the last block, in one pass (ability `attention`)."""
        self._lacks("attention")

    # -- fine-tuning ---------------------------------------------------------------------------------------------------

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute layers in the backward pass, or not: less memory, more time, the same numbers."""
        raise NotImplementedError(f"{type(self).__name__} does not recompute layers")

    def layer_of(self, parameter: str) -> tuple[int, int]:
        """The layer that a parameter belongs to, counted from the image, and the number of layers, for layer-wise learning rates.

        The final norm and what follows it count as the head: the last layer.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say the layers of its parameters")

    def parameters_behind(self, level: int, *, norm: bool) -> list[nn.Parameter]:
        """Parameters that take no part in `levels` up to this one."""
        raise NotImplementedError(f"{type(self).__name__} does not say what follows a level")

    def _lacks(self, ability: str) -> NoReturn:
        raise AssertionError(f"{self.arch.name} has not {ABILITIES[ability]}: require_abilities refuses it")
