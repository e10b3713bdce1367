"""Weights, gradients and optimizer states of large networks, of which each process holds a part (PyTorch's FSDP2).

    shard(method, device)                       # before the optimizer is made
    optimizer = make_optimizer(method)          # of `parameter_here(p)` for each p: AdamW looks at one weight at a time
    ...backward...
    give_gradients(optimizer)
    optimizer.step()
    whole_state(method)                         # plain tensors, as without sharding: a checkpoint can be resumed either way

All transformer blocks but the last are sharded, of students and teachers. The rest (embeddings, the last block, of which methods compute
a part only, and heads) is held whole by all processes. A block's weights are put together when it runs.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from densewalk.core import distributed
from densewalk.models.backbone import Backbone
from densewalk.models.blocks import run_blocks

M = TypeVar("M", bound=nn.Module)
WHOLE = "densewalk_whole"  # attribute of a part: the sharded parameter


def shard(method: M, device: torch.device) -> M:
    """Shard the blocks of all backbones of a method; a copy of the method as it was, on the CPU, for `fill`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = copy.deepcopy(method).cpu()
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for backbone in [part for part in method.modules() if isinstance(part, Backbone)]:
        blocks = list(backbone.vit.blocks)[:-1]
        inside = {id(p) for block in blocks for p in block.parameters()}
        for block in blocks:
            fully_shard(block, mesh=mesh)
            block.forward = partial(_run_block, block)
        # the blocks' common root, so that weights are put together ahead of time; it has no weights of its own
        fully_shard(
            backbone.vit, mesh=mesh, ignored_params={p for p in backbone.vit.parameters() if id(p) not in inside and not is_sharded(p)}
        )
        backbone.vit.forward = _run_sharded
        backbone.run_blocks = partial(_call, backbone.vit)  # a function: a module would be listed twice
    return plain


def _call(vit: Any, *arguments: Any) -> Tensor:
    x: Tensor = vit(*arguments)
    return x


def _run_sharded(blocks: Sequence[Any], x: Tensor, rope: Tensor | None, recompute: bool) -> Tensor:
    """`run_blocks`; FSDP2's hooks are on the calls."""
    for block in blocks:
        x = block(x, rope, recompute) if any(map(is_sharded, block.parameters())) else run_blocks([block], x, rope, recompute)
    return x


def _run_block(block: nn.Module, x: Tensor, rope: Tensor | None, recompute: bool) -> Tensor:
    return run_blocks([block], x, rope, recompute)


def is_sharded(x: Tensor) -> bool:
    """True for a tensor of which this process holds a part."""
    return hasattr(x, "to_local")  # torch's DTensor, whose import takes 0.75 CPU seconds


def parameter_here(p: nn.Parameter) -> nn.Parameter:
    """The part of a parameter that this process learns; the parameter itself where it is whole."""
    if not is_sharded(p):
        return p
    part = nn.Parameter(distributed.local_part(p.detach()))
    setattr(part, WHOLE, p)
    return part


def _parts(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, Any]]:
    """Each part that an optimizer learns, with its sharded parameter."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [(p, getattr(p, WHOLE)) for p in params if hasattr(p, WHOLE)]


def give_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer the parts of the gradients, which FSDP2 has averaged, and clear those of the sharded parameters."""
    for part, sharded in _parts(optimizer):
        part.grad = None if sharded.grad is None else distributed.local_part(sharded.grad)
        sharded.grad = None


def whole(x: Tensor) -> Tensor:
    """The tensor put together; all processes must call it."""
    found: Tensor = x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]
    return found


def _part_of(x: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, sharded like another one."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None).to_local()


def _put_together(part: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def whole_state(method: nn.Module) -> dict[str, Tensor]:
    """`state_dict` of whole tensors; all processes must call it. Process 0 gets them on the CPU if any are sharded."""
    state = method.state_dict()
    if not any(map(is_sharded, state.values())):
        return state
    return {name: whole(x.detach()).cpu() for name, x in state.items()}


def fill(plain: M, method: M) -> M:
    """The copy of a method that `shard` made, with its weights; all processes must call it."""
    plain.load_state_dict(whole_state(method))
    return plain


def load_whole_state(method: nn.Module, state: dict[str, Tensor]) -> None:
    """Load such a state."""
    own = method.state_dict()
    if not any(map(is_sharded, own.values())):
        method.load_state_dict(state)
        return
    if own.keys() != state.keys():
        raise ValueError(f"the state has other tensors: {sorted(own.keys() ^ state.keys())[:5]}")
    with torch.no_grad():
        for name, x in own.items():
            distributed.local_part(x).copy_(_part_of(state[name].to(x.device), x) if is_sharded(x) else state[name])


def map_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], change: Callable[[Tensor, Any], Tensor]) -> dict[str, Any]:
    """The state with each tensor that is as large as its sharded parameter, or its part, changed."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    changed = {}
    for number, values in state["state"].items():
        like = getattr(params[number], WHOLE, None)
        changed[number] = {k: v if like is None or k == "step" else change(v, like) for k, v in values.items()}
    return {**state, "state": changed}


def whole_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as without sharding; all processes must call it."""
    return map_optimizer_state(optimizer, state, lambda part, like: _put_together(part, like).cpu())


def optimizer_state_here(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """This process's part of such a state."""
    return map_optimizer_state(optimizer, state, lambda x, like: _part_of(x.to(like.device), like))
