"""DINOv2's student and teacher with a head for the patches that are aligned."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from densewalk.methods.ibot.network import Heads, MaskedNetwork
from densewalk.models.backbone import Backbone
from densewalk.models.heads import PatchHead


class PakaNetwork(MaskedNetwork):
    """A `MaskedNetwork` with `aligned_head`: three linear layers with GELU between them, torch's initialization."""

    def __init__(self, backbone: Backbone, heads: Heads, aligned_head: PatchHead) -> None:
        super().__init__(backbone, heads)
        self.aligned_head = aligned_head

    def unflipped_maps(
        self, images: Float[Tensor, "images 3 height width"], flipped: Bool[Tensor, " images"]
    ) -> Float[Tensor, "images dim rows columns"]:
        """The backbone's patches as maps in float32, those of flipped images turned back."""
        tokens = self.backbone.tokens(images)
        maps = tokens.patches.float().transpose(1, 2).unflatten(2, tokens.grid)
        return maps.flip(-1).where(flipped[:, None, None, None], maps)

    def parts(self) -> list[list[nn.Parameter]]:
        """Parameters of the backbone with its mask token, and of each head."""
        return [*super().parts(), list(self.aligned_head.parameters())]
