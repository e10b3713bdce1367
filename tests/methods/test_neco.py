from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from benchmarks import matrix_sort
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from torchvision.ops import roi_align

from densewalk.core.errors import UserError
from densewalk.methods.neco import alignment, references
from densewalk.methods.neco import method as module
from densewalk.methods.neco.alignment import align, crop_pairs, distances
from densewalk.methods.neco.augmentation import NecoCrops, make_views
from densewalk.methods.neco.method import Neco
from densewalk.methods.neco.settings import NecoSettings
from densewalk.models.architecture import Architecture
from densewalk.models.loading import create
from densewalk.models.surgery import without_registers
from densewalk.models.timm_models import architecture_without_registers
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item
from tests.fixtures.helpers import shared
from tests.fixtures.methods.drifting import learned, textures
from tests.fixtures.methods.neco import SMALL, Pictures, batch_of, neco


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """The numbers in a reference file."""
    with np.load(shared(f"parity/{name}")) as file:
        return {k: v for k, v in file.items() if v.dtype.kind in "fi"}


def nested(name: str, prefix: str) -> dict[str, torch.Tensor]:
    """Those whose keys begin with `prefix`, without it."""
    return {k.removeprefix(prefix): torch.from_numpy(np.array(v)) for k, v in arrays(name).items() if k.startswith(prefix)}


# -- the released code's numbers ---------------------------------------------------------------------------------------


def test_the_loss_equals_the_releases(monkeypatch):
    case = nested("neco_loss.npz", "all_batchref_cosine/")
    batch, patch, grid, local = (int(case[k]) for k in ("bs", "patch_size", "gc_res", "lc_res"))

    def maps(name, crops, side):
        return case[name].unflatten(0, (crops, batch, side, side)).permute(1, 0, 4, 2, 3)

    student = [maps("student_gc", 2, grid).requires_grad_(), maps("student_lc", 4, local).requires_grad_()]
    method = neco(compat="released", global_size=224, local_size=96)
    boxes = case["bboxes/gc"] / patch, case["bboxes/all"] / patch
    targets, sources = align(maps("teacher_gc", 2, grid), student, *boxes, method.settings)
    replay(monkeypatch, [case[f"randperms_in_order/{p}"] for p in range(10)])
    references = method.sample_references(targets, None, torch.Generator())
    for p in range(10):
        for side, found in ((2 * p, sources), (2 * p + 1, targets)):
            torch.testing.assert_close(found[p], case[f"pairs/{side}/src"].flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
    for side in range(20):
        torch.testing.assert_close(references[side // 2], case[f"pairs/{side}/ref"].flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
    for side, found in ((0, sources), (1, targets)):
        rows = distances(found[0], references[0], method.settings).flatten(0, 1).detach().double()
        order = matrix_sort.relaxed_sort(rows, "bitonic", 100.0)[0].unflatten(0, found[0].shape[:2])  # image, patch, reference, position
        torch.testing.assert_close(order.permute(0, 3, 2, 1).float(), case[f"pairs/{side}/perm"].flatten(3), atol=1e-4, rtol=1e-3)
    for p in range(10):
        rows = [distances(x[p], references[p], method.settings).flatten(0, 1) for x in (sources, targets)]
        assert method.sort_losses(*rows, student_steepness=100.0).mean().item() == pytest.approx(
            float(case[f"sublosses/{p}/loss"]), abs=1e-5
        )
    total = method.order_loss(sources, targets, references, None)
    assert total.item() == pytest.approx(float(case["loss"]), abs=1e-5)
    for gradient, name, crops, side in zip(
        torch.autograd.grad(total, student), ("d_student_gc", "d_student_lc"), (2, 4), (grid, local), strict=True
    ):
        expected = maps(name, crops, side)
        assert (gradient - expected).norm() < 1e-4 * expected.norm()


def to_network(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released network's names in ours."""
    return {k.replace("projection_head.", "head.mlp.") if "head" in k else f"backbone.vit.{k}": v for k, v in weights.items()}


def require_released_groups(method: Neco, optimizer: torch.optim.Optimizer) -> None:
    """Every parameter has the learning rate and weight decay that the release gives it."""
    with np.load(shared("parity/neco_step.npz")) as file:
        recorded = [{k: file[f"param_groups/{g}/{k}"] for k in ("names", "lr", "wd")} for g in range(4)]
    names = {id(p): name for name, p in method.student.named_parameters()}
    set_schedules(optimizer, 0)
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    expected = {to_network({str(name): None}).popitem()[0]: (float(g["lr"]), float(g["wd"])) for g in recorded for name in g["names"]}
    assert found.keys() == expected.keys()
    for name, rates in expected.items():
        assert found[name] == pytest.approx(rates), name


def replay(monkeypatch, permutations: list[torch.Tensor]) -> None:
    """Recorded permutations in place of the method's own draws, in order."""
    recorded = iter(permutations)

    def recorded_indices(pool, count, generator):
        order = next(recorded)
        assert len(order) == pool == count
        return order

    monkeypatch.setattr(module, "sample_indices", recorded_indices)


def test_three_steps_equal_the_releases(monkeypatch):
    case = nested("neco_step.npz", "")
    arch = Architecture(
        "reference",
        dim=48,
        depth=1 + max(int(k.split(".")[1]) for k in case if k.startswith("student0/blocks.")),
        heads=3,
        patch=16,
    )
    settings = NecoSettings(
        compat="released",
        steps=10,
        batch_size=2,
        global_size=112,
        local_size=48,
        head_hidden=64,
        head_out=32,
        queue=0,
        drop_path=0.0,
        backbone_lr=float(case["hparams/lr_backbone"]),
        head_lr=float(case["hparams/lr_heads"]),
    )
    method = Neco(settings, create(arch, seed=0), 10, 5, seed=0)
    method.student.load_state_dict(to_network(nested("neco_step.npz", "student0/")))
    method.teacher.load_state_dict(to_network(nested("neco_step.npz", "teacher0/")))
    optimizer = make_optimizer(method)
    require_released_groups(method, optimizer)
    np.testing.assert_allclose(method.momentum, case["momentum_schedule"], rtol=1e-12)
    np.testing.assert_allclose(method.param_groups()[0].weight_decay, case["wd_schedule"], rtol=1e-12)
    for at in range(3):
        step = nested("neco_step.npz", f"steps/{at}/")
        batch = {
            "global": torch.stack([step["crops/0"], step["crops/1"]], dim=1),
            "local": torch.stack([step[f"crops/{v}"] for v in range(2, 6)], dim=1),
            "in_global": step["bboxes/gc"],
            "in_view": step["bboxes/all"],
        }
        replay(monkeypatch, [step[f"randperms_in_order/{p}"] for p in range(10)])
        set_schedules(optimizer, at)
        np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], step["lrs"], rtol=1e-9)
        for network, crops, name in ((method.teacher, ("global",), "teacher_emb"), (method.student, ("global", "local"), "student_emb")):
            maps = [network.encode(batch[c]).transpose(0, 1).flatten(0, 1) for c in crops]
            found = torch.cat([m.flatten(2).transpose(1, 2).flatten(0, 1) for m in maps])
            torch.testing.assert_close(found, step[name], atol=1e-4, rtol=1e-3)
        loss, _ = method.step(batch, at, torch.Generator())
        assert loss.item() == pytest.approx(float(step["loss"]), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        for name, gradient in to_network(nested("neco_step.npz", f"steps/{at}/grads/")).items():
            found = method.student.get_parameter(name).grad
            assert (found - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
        method.after_backward(at)
        optimizer.step()
        method.after_update(at)
        for network, folder in ((method.student, "student_after"), (method.teacher, "teacher_after")):
            for name, weight in to_network(nested("neco_step.npz", f"steps/{at}/{folder}/")).items():
                # AdamW divides a gradient by its own size: where it is rounding noise, as for the keys' bias, which attention
                # ignores, its sign decides about a whole learning rate
                error = (network.state_dict()[name] - weight).abs()
                allowed = 48 if name.endswith("qkv.bias") else 1 + error.numel() // 2000
                assert (error > 1e-5).sum() <= allowed, name
                assert error.max() <= 2 * (at + 1) * step["lrs"].max(), name


# -- the method's own rules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_global", "n_local"), [(2, 4), (3, 1), (2, 0)])
def test_alignment_is_roi_align_of_each_pair(n_global, n_local):
    method = neco(global_crops=n_global, local_crops=n_local)
    batch = batch_of(method)
    teacher = torch.randn(2, n_global, 16, 4, 4)
    student = [torch.randn(2, n_global, 16, 4, 4), torch.randn(2, n_local, 16, 2, 2)][: 1 + (n_local > 0)]
    boxes = batch["in_global"] / 16, batch["in_view"] / 16
    targets, sources = align(teacher, student, *boxes, method.settings)
    pairs = crop_pairs(method.settings)
    assert len(pairs) == n_global * (n_global + n_local - 1)
    assert targets.shape == sources.shape == (len(pairs), 2, 49, 16)
    for p, (i, v) in enumerate(pairs):
        own = student[0][:, v] if v < n_global else student[1][:, v - n_global]
        for b in range(2):
            for maps, box, found in ((teacher[b, i], boxes[0][b, i, v], targets), (own[b], boxes[1][b, v, i], sources)):
                roi = torch.cat([torch.zeros(1), box])[None]
                expected = roi_align(maps[None], roi, 7, aligned=True)[0].flatten(1).T
                torch.testing.assert_close(found[p, b], expected)


@given(st.floats(0, 6), st.floats(0, 6), st.floats(0.01, 7), st.floats(0.01, 7))
@settings(max_examples=100, deadline=None)
def test_roi_align_reads_used_patches_only(left, top, width, height):
    box = torch.tensor([left, top, min(left + width, 7), min(top + height, 7)])
    used = alignment.used_patches(box.view(1, 1, 1, 4), 7)[0, 0]
    maps = torch.zeros(1, 1, 7, 7, requires_grad=True)
    roi_align(maps, torch.cat([torch.zeros(1), box])[None], 7, aligned=True).sum().backward()
    assert not maps.grad[0, 0][~used].any()
    rows, columns = used.any(dim=1).sum(), used.any(dim=0).sum()
    assert rows <= height + 3
    assert columns <= width + 3


def test_references_are_the_teachers_patches_without_replacement():
    method = neco()
    targets = torch.randn(10, 2, 49, 16)
    found = method.sample_references(targets, None, torch.Generator().manual_seed(0))
    for p in range(10):
        one, two = (sorted(map(tuple, x[p].flatten(0, 1).tolist())) for x in (found, targets))
        assert one == two
    assert not torch.equal(found, targets)


def test_the_queue_holds_the_newest_patches_first():
    method = neco(queue=64, queue_patches_per_image=5)
    for step in range(3):
        method.update_queue(torch.full((2, 2, 16, 4, 4), float(step + 1)), torch.Generator().manual_seed(step))
    assert int(method.entries) == 30
    assert method.queue[0, :, 0].tolist() == [3.0] * 10 + [2.0] * 10 + [1.0] * 10 + [0.0] * 34
    references = method.sample_references(torch.zeros(10, 1, 49, 16), None, torch.Generator().manual_seed(0))
    assert (references != 0).all(), "no reference is an empty row"
    released = neco(queue=64, queue_patches_per_image=5, compat="released")
    released.update_queue(torch.ones(2, 2, 16, 4, 4), torch.Generator().manual_seed(0))
    references = released.sample_references(torch.zeros(10, 1, 49, 16), None, torch.Generator().manual_seed(0))
    assert (references == 0).any(), "the release draws empty rows until its queue is full"


def test_equal_networks_agree_on_the_order():
    # one head for both: the loss of identical crops is the entropy of the targets, its minimum over the student
    method = neco(drop_path=0.0, local_crops=0)
    batch = batch_of(method)
    whole = torch.tensor([0.0, 0.0, 64.0, 64.0])
    batch["global"] = batch["global"][:, :1].expand(-1, 2, -1, -1, -1).contiguous()
    batch["in_global"], batch["in_view"] = whole.expand(2, 2, 2, 4), whole.expand(2, 2, 2, 4)
    loss, logs = method.step(batch, 0, torch.Generator().manual_seed(0))
    loss.backward()
    assert 0 < logs["target_entropy"] < np.log(49)
    size = sum(float(p.grad.norm()) ** 2 for p in method.student.parameters() if p.grad is not None) ** 0.5
    assert size < 1e-4
    assert any(p.grad is not None for p in method.student.parameters())


def test_the_teacher_is_not_trained_and_follows():
    method = neco()
    before = method.teacher.backbone.vit.cls_token.clone()
    loss, _ = method.step(batch_of(method), 0, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    with torch.no_grad():
        method.student.backbone.vit.cls_token += 1
    method.after_backward(0)
    torch.testing.assert_close(method.teacher.backbone.vit.cls_token, before * 0.9995 + 0.0005 * (before + 1))


def test_samples_depend_on_their_item_alone():
    views = NecoCrops(Pictures(1, 0), NecoSettings(**SMALL))
    one, two, other = views[Item(0, 5)], views[Item(0, 5)], views[Item(0, 6)]
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["global"], other["global"])
    assert one["global"].shape == (2, 3, 64, 64)
    assert one["local"].shape == (4, 3, 32, 32)
    assert (one["in_global"][..., 2:] > one["in_global"][..., :2]).all(), "every crop overlaps every global crop"
    assert one["global"].dtype == torch.uint8
    assert one["in_global"].min() >= 0
    assert one["in_global"].max() <= 64


def test_dropped_registers_keep_the_patches_positions():
    backbone = create("vit_nano_patch14_reg4", seed=0)
    plain = without_registers(backbone)
    assert plain.arch.name == "vit_nano_patch14"
    images = torch.randn(1, 3, 28, 42)
    tokens, _ = backbone.embed(images)
    torch.testing.assert_close(plain.embed(images)[0], torch.cat([tokens[:, :1], tokens[:, 5:]], dim=1))
    named_by_timm = replace(backbone.arch, name="timm/vit_nano_patch14_reg4_dinov2")
    assert architecture_without_registers(named_by_timm) == plain.arch
    with pytest.raises(UserError, match="timm/x has no name without its registers here; to do: keep the registers"):
        architecture_without_registers(replace(backbone.arch, name="timm/x", layer_scale=False))
    method = neco(backbone, registers="drop", global_size=56, local_size=28)
    assert method.export().arch.registers == 0


def test_wanted_patches_are_the_last_layers():
    backbone, images = create("vit_nano_patch16_reg4", seed=0), torch.randn(3, 3, 48, 32)
    wanted = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.testing.assert_close(backbone.patches_where(images, wanted), backbone.tokens(images).patches[wanted])
    assert backbone.patches_where(images, torch.zeros_like(wanted)).shape == (0, 48)


def test_only_the_last_blocks_learn_if_asked():
    with pytest.raises(UserError, match="trainable_blocks 50: vit_nano_patch16 has 2 blocks"):
        neco(trainable_blocks=50)
    method = neco(trainable_blocks=1)
    loss, _ = method.step(batch_of(method), 0, torch.Generator().manual_seed(0))
    loss.backward()
    learning = {name for name, p in method.student.backbone.named_parameters() if p.grad is not None}
    assert learning
    assert all(name.startswith(("vit.blocks.1.", "vit.norm.")) for name in learning)


def test_clipping_works_except_in_the_release():
    for compat, clipped in (("paper", True), ("released", False)):
        method = neco(clip_grad=1e-3, compat=compat)
        method.step(batch_of(method), 0, torch.Generator().manual_seed(0))[0].backward()
        method.after_backward(0)
        norm = torch.stack([p.grad.norm() for p in method.student.parameters() if p.grad is not None]).norm()
        assert (float(norm) <= 1.01e-3) == clipped


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match=r"local_size 98 is not a multiple of the patch size 16; allowed: e\.g\. 96"):
        neco(global_size=224, local_size=98)
    neco(global_size=64, local_size=35, compat="released")
    with pytest.raises(ValueError, match="preset 'small/neco' is unknown"):
        NecoSettings(preset="small/neco")


def test_presets_give_way_to_explicit_keys():
    settings = NecoSettings(preset="small/neco_dino", batch_size=8)
    assert (settings.batch_size, settings.global_size, settings.queue, settings.epochs) == (8, 224, 0, 50)
    assert NecoSettings(preset="small/neco_dino", steps=5).epochs is None
    assert NecoSettings(preset="small/neco_dino", compat="released").local_size == 98
    assert NecoSettings.model_validate(settings.model_dump(mode="json")) == settings


class Textures(Pictures):
    """Smooth images, which have neighbors to order."""

    def __init__(self):
        self.pictures = [*(255 * textures()).byte()]


def test_the_preset_for_small_videos_learns():
    """The student's order comes nearer to the teacher's, below which the loss cannot fall, on crops that it has not seen."""
    steps = 20
    settings = NecoSettings(preset="small_video", steps=steps, batch_size=4, global_size=64, local_size=48)
    crops = NecoCrops(Textures(), settings)

    def batch(step):
        samples = [crops[Item(i, step * settings.batch_size + i)] for i in range(settings.batch_size)]
        return make_views(torch.utils.data.default_collate(samples), torch.device("cpu"))

    curve = learned(Neco(settings, create("vit_nano_patch16", seed=0), steps, 1, seed=0), batch)
    first, last = (loss - entropy for loss, entropy in zip(curve["loss"], curve["target_entropy"], strict=True))
    assert last < 0.9 * first


# -- the release's defects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["teacher_graph", "unused_patches"])
def test_what_only_costs_changes_nothing_else(switch):
    found = []
    for value in (False, True):
        method = neco(compat="released", **{switch: value})
        for part in method.modules():
            if isinstance(part, DropPath):
                part.drop_prob = 0.4
        torch.manual_seed(1)
        loss, _ = method.step(batch_of(method), 0, torch.Generator().manual_seed(0))
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in method.student.named_parameters() if p.grad is not None}))
        if switch == "teacher_graph":
            assert torch.equal(loss, found[0][0]), "to the last bit"
            assert all(torch.equal(gradient, found[0][1][name]) for name, gradient in found[-1][1].items())
            assert any(p.grad is not None for p in method.teacher.parameters()) == value, "the graph reaches through the references"
        method.after_backward(0)
        assert all(p.grad is None for p in method.teacher.parameters())
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-5)


def test_heads_start_equal_unless_released():
    for compat, equal in (("paper", True), ("released", False)):
        method = neco(compat=compat)
        pairs = zip(method.student.head.parameters(), method.teacher.head.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == equal


def test_distances_and_similarities_are_the_same_order_from_two_ends():
    patches, references = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    paper, released = (NecoSettings(steps=1, compat=c).resolved() for c in ("paper", "released"))
    torch.testing.assert_close(1 - distances(patches, references, paper), distances(patches, references, released))
    euclidean = distances(patches, references, NecoSettings(steps=1, distance="euclidean"))
    torch.testing.assert_close(euclidean, (patches[:, :, None] - references[:, None]).norm(dim=-1), atol=1e-4, rtol=1e-4)


def test_released_positions_are_resampled_with_dinos_offset():
    backbone = create("vit_nano_patch14_reg4", seed=0)
    assert neco(backbone, global_size=56, local_size=28).export().arch.interpolation == "antialias"
    assert neco(backbone, global_size=56, local_size=28, compat="released").export().arch.interpolation == "offset"


def test_odd_even_with_a_hard_teacher_is_finite():
    method = neco(network="odd_even", teacher_steepness=1000.0, student_steepness=1000.0)
    loss, _ = method.step(batch_of(method), 0, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.student.parameters())


# -- foreground and background -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["foreground", "background"])
def test_only_masked_patches_are_learned_and_referred_to(mask):
    method = neco(loss_mask=mask)
    batch = batch_of(method)
    _, masks = method.encode_teacher(batch["global"], batch["in_global"])
    assert masks.any()
    assert not masks.all()
    covered = torch.zeros(2, 2, 6, 49, dtype=torch.bool)
    covered[1, :, :, :9] = True
    targets = torch.arange(98.0).view(1, 2, 49, 1).expand(10, 2, 49, 16)
    references = method.sample_references(targets, covered, torch.Generator().manual_seed(0))
    assert set(references.unique().tolist()) == set(range(49, 58))
    loss, logs = method.step(batch, 0, torch.Generator().manual_seed(0))
    loss.backward()
    assert 0 <= float(logs["learnt_patches"]) < 1
    assert loss.isfinite()


def test_the_masked_loss_is_the_mean_of_pairs_that_have_a_patch():
    method = neco()
    sources, targets, references = (torch.randn(10, 2, 49, 16) for _ in range(3))
    learnt = torch.rand(10, 2, 49) < 0.3
    learnt[4] = False
    means = []
    for p in [p for p in range(10) if p != 4]:
        rows = [distances(x[p], references[p], method.settings)[learnt[p]] for x in (sources, targets)]
        means.append(method.sort_losses(*rows, student_steepness=100.0).mean())
    assert method.order_loss(sources, targets, references, learnt).item() == pytest.approx(float(sum(means) / 9), abs=1e-5)
    nothing = torch.zeros_like(learnt)
    assert method.order_loss(sources.requires_grad_(), targets, references, nothing).item() == 0


def test_the_release_takes_the_masks_of_other_images():
    covered = torch.zeros(2, 2, 6, 49, dtype=torch.bool)
    covered[0, 0, 1, 5] = True  # image 0, view 1: row 1 of the release's list for global crop 0, which it takes for image 1
    covered[0, 1, 3, 7] = True  # image 0, view 3: row 3 of the list for global crop 1, of which it takes rows 2 and 3
    pairs = [(0, 1), (1, 3)]
    right, wrong = ([c.tolist() for c in references.candidates(covered, pairs, neco(compat=c).settings)] for c in ("paper", "released"))
    assert right == [[5], [7]]
    assert wrong == [[49 + 5], [49 + 7]]


def test_a_pair_without_references_is_skipped_and_counted_in_the_release():
    """The shifted mask of a pair is empty though its own is not: the release skips the pair and divides by all of them."""
    covered = torch.rand(2, 2, 6, 49, generator=torch.Generator().manual_seed(0)) < 0.5
    covered[0, 0, :2] = False  # the rows that the release takes for every pair of global crop 0
    sources, targets = (torch.randn(10, 2, 49, 16, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    means = {}
    for compat in ("paper", "released"):
        method = neco(compat=compat, loss_mask="foreground")
        references = method.sample_references(targets, covered, torch.Generator().manual_seed(0))
        learned = method.learned_patches(covered)
        found = method.order_loss(sources, targets, references, learned).item()
        own = alignment.select_pairs(covered, method.pairs)
        means[compat] = []
        for p in range(10):
            rows = [distances(x[p], references[p], method.settings)[own[p]] for x in (sources, targets)]
            means[compat].append(method.sort_losses(*rows, student_steepness=100.0).mean().item())
        kept = means[compat] if compat == "paper" else means[compat][5:]
        assert found == pytest.approx(sum(kept) / 10, abs=1e-5)
    assert not method.sample_references(targets, covered, torch.Generator())[:5].any(), "nothing is drawn for a pair that is skipped"
    queued = neco(compat="released", loss_mask="foreground", queue=64)
    assert torch.equal(queued.learned_patches(covered), alignment.select_pairs(covered, queued.pairs)), "the queue has references"


def test_an_empty_mask_of_a_pair_still_counts_in_the_release():
    learned = torch.zeros(10, 2, 49, dtype=torch.bool)
    learned[3, :, :7] = True
    sources, targets, refs = (torch.randn(10, 2, 49, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    paper, released = (
        neco(loss_mask="foreground", skip_pairs_without_references=v).order_loss(sources, targets, refs, learned) for v in (False, True)
    )
    assert released.item() == pytest.approx(paper.item() / 10, rel=1e-5)


def test_only_foreground_enters_the_queue_in_the_release():
    maps = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 1  # every patch a value of its own
    masks = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0, :3], masks[1, 0, 2, 1:], masks[1, 1, 3, :] = True, True, True  # 6 of global crop 0, 4 of crop 1
    teacher = maps[:, :, None].expand(-1, -1, 16, -1, -1)
    method = neco(compat="released", loss_mask="foreground", queue=64, queue_patches_per_image=10)
    method.update_queue(teacher, torch.Generator().manual_seed(0), masks)
    for crop, count in ((0, 6), (1, 4)):
        assert sorted(method.queue[crop, :count, 0].tolist()) == sorted(maps[:, crop][masks[:, crop]].tolist())
        assert not method.queue[crop, count:].any()
    assert int(method.entries) == 10, "advanced once for each global crop"
    fixed = neco(loss_mask="foreground", foreground_queue=True, queue=64, queue_patches_per_image=10)
    fixed.update_queue(teacher, torch.Generator().manual_seed(0), masks)
    assert int(fixed.entries) == 4, "as many rows as every crop has"
    few = neco(compat="released", loss_mask="foreground", queue=64, queue_patches_per_image=1)
    few.update_queue(teacher, torch.Generator().manual_seed(0), masks)
    assert [int(few.queue[crop].any(dim=1).sum()) for crop in (0, 1)] == [2, 2]
    for other in (neco(loss_mask="foreground", queue=64), neco(compat="released", loss_mask="background", queue=64)):
        other.update_queue(teacher, torch.Generator().manual_seed(0), masks)
        assert int(other.queue[0].any(dim=1).sum()) == 20, "any patch"
    no_foreground = neco(compat="released", loss_mask="foreground", queue=64)
    no_foreground.update_queue(teacher, torch.Generator().manual_seed(0), torch.zeros_like(masks))
    assert not no_foreground.queue.any()
    assert no_foreground.sample_references(torch.zeros(10, 1, 49, 16), None, torch.Generator().manual_seed(0)).isfinite().all()


def test_uneven_shares_of_the_queue_come_from_all_processes(monkeypatch):
    ones, twos = torch.ones(3, 16), torch.full((2, 16), 2.0)
    padded = [torch.cat([rows, torch.zeros(5 - len(rows), 16)]) for rows in (ones, twos)]
    sent = iter([torch.tensor([[3], [2]]), torch.stack(padded)])
    monkeypatch.setattr(references.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(references.distributed, "gathered", lambda x: next(sent))
    assert torch.equal(references.gather_rows(ones, 5), torch.cat([ones, twos]))


def test_masks_of_the_release_hold_patches_that_are_wholly_inside_to_the_last_bit():
    """RoIAlign of a mask that is true everywhere is 1 but for rounding: half of the release's patches are lost to it."""
    masks = torch.ones(3, 2, 16, 16, dtype=torch.bool)
    boxes = torch.rand(3, 2, 6, 4, generator=torch.Generator().manual_seed(0)) * 7
    boxes[..., 2:] += 8
    paper, released = (alignment.align_masks(masks, boxes, neco(compat=c).settings) for c in ("paper", "released"))
    exact = alignment.resample(masks.float().unsqueeze(2), boxes, 7).squeeze(-1) >= 1.0
    assert paper.all()
    assert torch.equal(released, exact)
    assert not released.all()


# -- the CLS token with registers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compat", ["paper", "released"])
def test_the_release_trains_the_cls_token_and_its_position_apart(compat):
    """With registers kept the two are one here; in the release each makes a step of its own, so that their sum makes two."""
    method = neco(create("vit_nano_patch16_reg4", seed=0), compat=compat, drop_path=0.0, backbone_lr=1e-2, weight_decay=0.4)
    vit, optimizer = method.student.backbone.vit, make_optimizer(method)
    assert vit.no_embed_class
    half = [torch.nn.Parameter(vit.cls_token.detach() * share) for share in (0.3, 0.7)]  # any two parts of it
    separate = torch.optim.AdamW(half, lr=0.0)
    lr, decay = method.param_groups()[0].lr, method.param_groups()[0].weight_decay
    for at in range(4):
        set_schedules(optimizer, at)
        optimizer.zero_grad()
        method.step(batch_of(method, seed=at), at, torch.Generator().manual_seed(at))[0].backward()
        for part in half:
            part.grad = vit.cls_token.grad.clone()
        before = vit.cls_token.detach().clone()
        optimizer.step()
        separate.param_groups[0].update(lr=float(lr[at]), weight_decay=float(decay[at]))
        separate.step()
        expected = half[0] + half[1]
        error = (vit.cls_token - expected).abs().max().item()
        if compat == "released":
            assert error < 1e-6
        elif at == 0:
            assert error == pytest.approx(float(lr[0]), rel=1e-3), "one step less"
            assert (vit.cls_token - before).abs().max().item() <= 1.1 * float(lr[0]) * (1 + 0.4 * before.abs().max().item())
    assert sorted(p.shape for group in optimizer.param_groups for p in group["params"]) == sorted(
        p.shape for p in method.student.parameters() if p.requires_grad
    ), "every parameter is in one group"


def test_only_a_folded_cls_token_makes_two_steps():
    """Without registers, or with them dropped, the table has an entry for CLS: there are two parameters in both modes."""
    for backbone, changes in (
        (create("vit_nano_patch16", seed=0), {}),
        (create("vit_nano_patch14_reg4", seed=0), {"registers": "drop", "global_size": 56, "local_size": 28}),
        (create("vit_nano_patch16_reg4", seed=0), {"trainable_blocks": 1}),
    ):
        method = neco(backbone, compat="released", **changes)
        assert [group.name for group in method.param_groups() if group.params and "cls" in group.name] == []


# -- several processes ---------------------------------------------------------------------------------------------------


def test_the_mean_over_masked_patches_is_that_of_all_processes(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    learned, losses = torch.rand(3, 4, 5, generator=rng) < 0.4, torch.rand(3, 4, 5, generator=rng)
    learned[2] = False  # a pair without any
    learned[1, 2:] = False  # and one without any in the second process
    expected = sum(losses[pair][learned[pair]].mean() for pair in (0, 1)) / 2
    counts = learned.flatten(1).sum(dim=1)
    monkeypatch.setattr(references.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(references.distributed, "all_sum", lambda own: counts)
    parts = [slice(2), slice(2, 4)]
    found = [(references.even_weights(learned[:, images]) * losses[:, images]).sum() for images in parts]
    torch.testing.assert_close(torch.stack(found).mean(), expected)


def test_references_do_not_depend_on_the_number_of_processes(monkeypatch):
    method, targets = neco(), torch.randn(10, 4, 49, 16)
    whole = method.sample_references(targets, None, torch.Generator().manual_seed(0))
    halves = targets.split(2, dim=1)
    monkeypatch.setattr(module.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(module.distributed, "gathered", lambda x: torch.stack(halves))
    found = []
    for rank in range(2):
        monkeypatch.setattr(module.distributed, "rank", lambda rank=rank: rank)
        found.append(method.sample_references(halves[rank], None, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(found, dim=1), whole)
