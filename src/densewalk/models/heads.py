"""Projection heads, and a network that clusters patches behind one."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.models.backbone import Backbone
from densewalk.ops.cpu.linear import Linear
from densewalk.ops.cpu.weight_norm import weight_norm_linear


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with GELU between them: [d, h, o] -> Linear(d, h), GELU, Linear(h, o)."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers += [nn.GELU()] * (i > 0) + [Linear(fan_in, fan_out)]
    return nn.Sequential(*layers)


class PrototypeHead(nn.Module):
    """DINO's head: MLP, L2 normalization, cosine logits of weight-normalized prototypes.

    logits_o = g_o <z / ||z||, v_o / ||v_o||>,  z = MLP(x)          (DINO, https://arxiv.org/abs/2104.14294, section 3.1 and appendix C)

    The parameters have the names of DINO's files: `mlp.{0,2,4}.*`, `last_layer.weight_g` [out_dim, 1] and
    `last_layer.weight_v` [out_dim, bottleneck]. Without `trainable_scale` g is 1 (DINO's `norm_last_layer`).
    """

    def __init__(self, dim: int, out_dim: int, *, hidden: int = 2048, bottleneck: int = 256, trainable_scale: bool = True) -> None:
        super().__init__()
        self.mlp = mlp([dim, hidden, hidden, bottleneck])
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck, out_dim, trainable_scale=trainable_scale)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch protos"]:
        """Logits, each within [-g_o, g_o]."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class WeightNormLinear(nn.Module):
    """Linear without bias whose rows are g_o v_o / ||v_o||."""

    def __init__(self, dim: int, out_dim: int, *, trainable_scale: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=trainable_scale)
        bound = dim**-0.5
        self.weight_v = nn.Parameter(torch.empty(out_dim, dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return weight_norm_linear(x, self.weight_v, self.weight_g)


class PatchHead(nn.Module):
    """MLP on every patch token, with or without L2 normalization (NeCo, Time-Tuning)."""

    def __init__(self, widths: list[int], *, normalize: bool) -> None:
        super().__init__()
        self.mlp = mlp(widths)
        self.normalize = normalize

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        """Embeddings, of unit length if `normalize`."""
        x = self.mlp(x)
        return F.normalize(x, dim=-1) if self.normalize else x


def normalized_mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers without bias, each followed by batch normalization over all processes, and but for the last by ReLU (MoCo v3).

    The last normalization has no weights.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        last = i == len(widths) - 1
        layers += [Linear(fan_in, fan_out, bias=False), BatchNormOverProcesses(fan_out, affine=not last)] + [nn.ReLU()] * (not last)
    return nn.Sequential(*layers)


class BatchNormOverProcesses(nn.BatchNorm1d):
    """Batch normalization of [batch, dim] by the mean and variance of all processes' batches, which are of one size, in float32.

    torch's SyncBatchNorm does not run on a CPU. With statistics of one process's batch a network could tell which samples it shares
    them with, which contrastive losses reward.
    """

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:  # noqa: D102
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if not self.training or distributed.world_size() == 1:
                return super().forward(x)
            count = len(x) * distributed.world_size()
            mean = distributed.summed(x.sum(dim=0)) / count
            variance = distributed.summed((x - mean).square().sum(dim=0)) / count
            self._track(mean.detach(), variance.detach() * count / (count - 1))
            x = (x - mean) * (variance + self.eps).rsqrt()
            return x if self.weight is None else x * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class Clusterer(nn.Module):
    """Backbone, projection head to unit vectors, and prototypes of unit length (Time-Tuning, MoSiC).

    Args:
        size: side of the images in pixels. learning: last blocks of the backbone that learn; everything else is frozen, the final norm too.
        widths: of the head's layers, the prototypes' dimension last. prototypes: how many.
    """

    def __init__(self, backbone: Backbone, size: int, *, learning: int, widths: list[int], prototypes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.backbone.vit.blocks[-learning:].requires_grad_(True)
        self.learning = learning
        self.grid = (size // backbone.patch, size // backbone.patch)
        self.head = PatchHead([backbone.dim, *widths], normalize=True)
        self.prototypes = nn.Parameter(torch.randn(prototypes, widths[-1]))
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Every prototype to unit length."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    @torch.no_grad()
    def encode_trunk(self, clips: Float[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch frames tokens dim"]:
        """The frozen part's output for every frame."""
        x, _ = self.backbone.embed(clips.flatten(0, 1))
        return self.backbone.run(x, self.grid, 0, -self.learning).unflatten(0, clips.shape[:2])

    def encode(self, trunk: Float[Tensor, "batch frames tokens dim"]) -> Float[Tensor, "batch frames patches dim"]:
        """Patch features: the last blocks and the final norm."""
        x = self.backbone.run(trunk.flatten(0, 1), self.grid, -self.learning)
        return self.backbone.finish(x, self.grid).patches.unflatten(0, trunk.shape[:2])


def assignment_statistics(
    assignment: Float[Tensor, "*rows protos"], labels: Int[Tensor, "*rows"], scores: Float[Tensor, "*rows protos"]
) -> dict[str, Tensor]:
    """Mean largest share of a patch, share of the prototypes that some label names, share of labels the student already gives."""
    used = torch.bincount(labels.flatten(), minlength=assignment.shape[-1]) > 0
    return {
        "assignment_confidence": assignment.amax(dim=-1).mean(),
        "prototypes_used": used.float().mean(),
        "student_agrees": (scores.argmax(dim=-1) == labels).float().mean(),
    }
