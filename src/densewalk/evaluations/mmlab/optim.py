"""Layer-wise learning-rate decay.

    lr of a parameter = lr * rate^(layers - 1 - layer)

With 12 blocks: embeddings rate^13, block i rate^(12 - i), final norm, pyramid and heads 1 (BEiT, https://arxiv.org/abs/2106.08254;
iBOT, https://arxiv.org/abs/2111.07832). mmsegmentation's own constructor looks for `layers.` where a ViT has `blocks.` and leaves
every block at 1 without a warning; this one asks the backbone.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.optim import Optimizer

from densewalk.core.files import atomic_write

TOKEN_PARAMETERS = ("pos_embed", "cls_token", "reg_token")


@dataclass(frozen=True)
class Row:
    """One parameter: its layer, its factor on the learning rate, and True where it is decayed."""

    name: str
    layer: int
    lr_scale: float
    decayed: bool


def decay_table(model: nn.Module, rate: float, *, decay_position_embedding: bool) -> list[Row]:
    """One row per trainable parameter of a model with a `backbone` that has `get_layer_depth`, in the model's order.

    Biases and other one-dimensional parameters (norms, LayerScale) are not decayed. Position embeddings, CLS and registers
    are, unless `decay_position_embedding` is off: published results come from code that means to leave them out but does not.
    """
    depth_of: Any = model.backbone.get_layer_depth  # type: ignore[union-attr]
    _, layers = depth_of(next(name for name, _ in model.backbone.named_parameters()))  # type: ignore[union-attr, operator]
    rows = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.startswith("backbone.")
        layer = depth_of(name.removeprefix("backbone."))[0] if inside else layers - 1
        token = inside and name.rsplit(".", 1)[-1] in TOKEN_PARAMETERS
        decayed = parameter.ndim > 1 and not name.endswith(".bias") and (decay_position_embedding or not token)
        rows.append(Row(name, layer, rate ** (layers - 1 - layer), decayed))
    return rows


def write_table(model: nn.Module, optimizer: Optimizer, path: Path) -> None:
    """Write shape, factor on the learning rate, learning rate after the warm-up and weight decay of every trained parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("parameter", "shape", "lr_scale", "lr", "weight_decay"))
        for group in optimizer.param_groups:
            lr, base = group["initial_lr"], optimizer.defaults["lr"]
            for parameter in (p for p in group["params"] if id(p) in names):
                shape = "x".join(str(side) for side in parameter.shape)
                writer.writerow((names[id(parameter)], shape, f"{lr / base:.6g}", f"{lr:.6g}", f"{group['weight_decay']:g}"))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Builds the optimizer from `decay_table`, one group per layer and kind.

    paramwise_cfg: {"rate": 0.9, "decay_position_embedding": True}.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Append the groups of `module`, the whole model, to `params`."""
        table = decay_table(module, self.paramwise_cfg["rate"], decay_position_embedding=self.paramwise_cfg["decay_position_embedding"])
        parameters = dict(module.named_parameters())
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for row in table:
            group = {"params": [], "lr": self.base_lr * row.lr_scale, "weight_decay": self.base_wd if row.decayed else 0.0}
            groups.setdefault((row.layer, row.decayed), group)["params"].append(parameters[row.name])
        params.extend(groups.values())
