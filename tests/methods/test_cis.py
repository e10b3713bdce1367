"""CIS: losses against plain loops and the release's values, flow and crops, turns, the exported decoder, and every method's promises."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from benchmarks.memory import counted as counted_values
from benchmarks.reference_values.cis import cis as recorded_rows
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset, default_collate

from densewalk.core.errors import UserError
from densewalk.data.sources import Source
from densewalk.data.stretches import Video
from densewalk.evaluations.motion_segmentation.evaluate import jaccard
from densewalk.methods.cis.losses import Predictions, errors_of, generator_loss, inpainter_loss
from densewalk.methods.cis.method import Cis, mean_absolute
from densewalk.methods.cis.pairs import FlowPairs, box_masks, draw_box, moving_videos, reduced
from densewalk.methods.cis.settings import CisSettings
from densewalk.models.export import export_backbone
from densewalk.models.families.motion import PREFIX, masks_of, object_side, standardize_flow
from densewalk.models.loading import create, load
from densewalk.ops.cpu import switch
from densewalk.training.execution import Execution
from densewalk.training.learning_curve import COLLAPSED
from densewalk.training.loop import one_step, ready
from densewalk.training.sampler import Item
from tests.fixtures.helpers import shared
from tests.fixtures.methods.runs import CPU, Images, require_equal_parts, require_equal_processes, require_exact_resume
from tests.fixtures.receipts import images_receipt, sequences_receipt
from tests.models.test_work import counted

SMALL = {
    "batch_size": 2,
    "steps": 4,
    "height": 32,
    "width": 48,
    "decoder_width": 8,
    "inpainter_width": 4,
    "inpainter_share": 0.25,
    "generator_steps": 1,
    "lr": 0.01,
}


def settings(**changes):
    return CisSettings(**{**SMALL, **changes})


def cis(arch="vit_nano_patch16", **changes):
    return Cis(settings(**changes), create(arch, seed=1), settings(**changes).steps, 2, seed=0)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WIDE = Images(3, 64, 128)


def read_moving(number, indices):
    """Smooth noise that goes two pixels to the left in each frame."""
    return torch.stack([WIDE[number][:, :, 2 * i : 2 * i + 96] for i in indices])


def flow_data(count=2, **changes):
    videos = [Video(partial(read_moving, n), 0, 6, n) for n in range(count)]
    return FlowPairs(videos, settings(**changes).resolved())


def batch_of(method, data, count=2):
    return method.prepare(default_collate([data[Item(i, seed=i)] for i in range(count)]), CPU)


# -- formulas ----------------------------------------------------------------------------------------------------------


def plain_rho(difference, weight):
    """In float64, pixel by pixel; [2, h, w] and [1, h, w]."""
    total = 0.0
    for axis in range(2):
        for y in range(difference.shape[1]):
            for x in range(difference.shape[2]):
                total += float(weight[0, y, x]) * math.sqrt(float(difference[axis, y, x]) ** 2 + 1e-6)
    return total


def test_both_losses_equal_the_plain_loops():
    flow, inside, outside, image = (noise(2, 2, 3, 4, seed=n).double() for n in range(4))
    mask = noise(2, 1, 3, 4, seed=5).double().sigmoid()
    of_inpainter, of_generator = 0.0, 0.0
    for b in range(2):
        a, c = plain_rho(flow[b] - inside[b], mask[b]), plain_rho(flow[b] - outside[b], 1 - mask[b])
        e = [plain_rho(flow[b] - image[b], w) for w in (mask[b], 1 - mask[b], torch.ones_like(mask[b]))]
        of_inpainter += (a + c + e[2]) / (2 * 12)
        of_generator += (1 - a / (e[0] + 0.3)) / 2 + (1 - c / (e[1] + 0.3)) / 2
    errors = errors_of(flow, mask, Predictions(inside, outside, image))
    assert inpainter_loss(errors, 12).item() == pytest.approx(of_inpainter, rel=1e-12)
    assert generator_loss(errors, 0.3).item() == pytest.approx(of_generator, rel=1e-12)


def test_the_release_s_values():
    with np.load(shared("parity/cis.npz")) as values:
        rows = list(recorded_rows(values))
    assert len(rows) == 14
    assert [row for row in rows if not row.holds] == []


def test_oracles_of_the_losses():
    flow, image, mask = noise(2, 2, 8, 9), noise(2, 2, 8, 9, seed=1), noise(2, 1, 8, 9, seed=2).sigmoid()
    perfect = errors_of(flow, mask, Predictions(flow, flow, image))
    assert generator_loss(perfect, 0.1).item() == pytest.approx(2, abs=0.01), "an inpainter that tells everything: the largest loss"
    one, two = noise(2, 2, 8, 9, seed=3), noise(2, 2, 8, 9, seed=4)
    there, back = errors_of(flow, mask, Predictions(one, two, image)), errors_of(flow, 1 - mask, Predictions(two, one, image))
    assert generator_loss(there, 0.1).item() == pytest.approx(generator_loss(back, 0.1).item(), rel=1e-6)
    assert inpainter_loss(there, 72).item() == pytest.approx(inpainter_loss(back, 72).item(), rel=1e-6)
    nothing = errors_of(flow, torch.zeros_like(mask), Predictions(one, image, image))
    second = (1 - nothing.outside / (nothing.image_outside + 0.1)).mean()
    assert torch.equal(generator_loss(nothing, 0.1), 1 + second), "the first fraction of an empty mask is exactly 1"


def test_flow_is_standardized_and_masks_are_a_tempered_softmax():
    flow = 3 + 5 * noise(2, 2, 6, 7)
    found = standardize_flow(flow)
    for b in range(2):
        for axis in range(2):
            own = flow[b, axis].double().numpy()
            np.testing.assert_allclose(found[b, axis], (own - own.mean()) / own.std(), atol=1e-5)
    assert torch.equal(standardize_flow(torch.full((1, 2, 3, 3), 2.0)), torch.zeros(1, 2, 3, 3))
    torch.testing.assert_close(standardize_flow(7 * flow), found)
    logits = noise(1, 2, 3, 3) * 20
    expected = 1 / (1 + torch.exp((logits[:, 1:] - logits[:, :1]) / 10))
    torch.testing.assert_close(masks_of(logits), expected)


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_flow_goes_with_the_frames_and_turns_with_a_flip():
    """To the left by 2 px a frame; the distance is -2 to 2, and a flip turns it."""
    data = flow_data(flow_scale=2.0, scale=(0.8, 1.0))
    assert len(data) == 12
    ways = set()
    for seed in range(16):
        sample = data[Item(seed % 12, seed=seed)]
        assert sample["image"].shape == (3, 32, 48)
        x, y = (sample["flow"][axis].median().item() for axis in (0, 1))
        assert abs(abs(x) - round(abs(x))) < 0.15, "whole frames of distance: resizing leaves the flow as long as it is"
        assert 1 <= round(abs(x)) <= 2
        assert abs(y) < 0.1
        ways.add(round(x))
        again = data[Item(seed % 12, seed=seed)]
        assert all(torch.equal(sample[name], again[name]) for name in sample)
    assert len(ways) == 4
    pair = data.read(data.videos[0], 0, 1)
    box = (0, 0, 64, 96)
    plain, flipped = (data.sample(pair, box, flip=flip) for flip in (False, True))
    assert torch.equal(flipped["image"].flip(-1), plain["image"])
    assert torch.equal(flipped["flow"][0].flip(-1), -plain["flow"][0])
    assert torch.equal(flipped["flow"][1].flip(-1), plain["flow"][1])
    assert plain["flow"][0].median().item() == pytest.approx(-1, abs=0.1)


def test_frames_and_videos_are_not_mixed():
    data = flow_data(count=3)
    places = [(data.place(i)[0].sequence, data.place(i)[1]) for i in range(len(data))]
    assert places == [(v, f) for v in range(3) for f in range(6)]
    generator = torch.Generator().manual_seed(0)
    for frame, expected in ((0, {1, 2}), (3, {1, 2, 4, 5}), (5, {3, 4})):
        assert {data.neighbor(data.videos[1], frame, generator) for _ in range(60)} == expected
    assert reduced(torch.zeros(1, 3, 100, 60, dtype=torch.uint8), 50).shape == (1, 3, 50, 30)


def test_boxes_are_masks():
    boxes = torch.stack([draw_box(torch.Generator().manual_seed(n)) for n in range(20)])
    assert ((boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6)).all()
    masks = box_masks(boxes, 50, 80)
    assert set(masks.unique().tolist()) == {0, 1}
    for box, mask in zip(boxes, masks, strict=True):
        assert mask.sum().item() == pytest.approx(box[2].item() * box[3].item() * 4000, rel=0.12)
    assert box_masks(torch.tensor([[0.0, 0.5, 0.5, 0.5]]), 4, 4)[0, 0].tolist() == [[0, 0, 1, 1]] * 2 + [[0, 0, 0, 0]] * 2


def test_what_does_not_move_is_refused_before_the_first_step(tmp_path):
    still = [Video(lambda indices: WIDE[0][None].expand(len(indices), -1, -1, -1), 0, 5)]
    with pytest.raises(UserError, match=r"stands still in each of 5 pairs: the median flow is below 0\.3 px"):
        FlowPairs(still, settings())
    mixed = [*still, Video(partial(read_moving, 1), 0, 6)]
    data = FlowPairs(mixed, settings())
    assert all(data[Item(i, seed=i)]["flow"].abs().mean() > 0.005 for i in range(5)), "a still pair is replaced by one that moves"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / name / "0.png")
    with pytest.raises(UserError, match="scene: no video has two frames, which optical flow needs"):
        moving_videos([Source("scene", sequences_receipt(tmp_path))])
    with pytest.raises(UserError, match="data photos is a folder of images, which have no optical flow"):
        Cis.dataset(settings(), [Source("photos", images_receipt(tmp_path))])
    with pytest.raises(UserError, match="height 40 is not a multiple of the patch size 16"):
        cis(height=40)


# -- steps -------------------------------------------------------------------------------------------------------------


def test_who_learns_when():
    method = cis(steps=10, inpainter_share=0.3, inpainter_steps=2, generator_steps=3)
    i, g = "inpainter", "generator"
    assert [method.turn(step) for step in range(10)] == [*["boxes"] * 3, i, i, g, g, g, i, i]
    method, data = cis(), flow_data()
    batch = batch_of(method, data)
    for step, learns in enumerate(("inpainter", "inpainter", "backbone")):
        method.zero_grad(set_to_none=True)
        loss, logs = method.step(batch, step, torch.Generator())
        loss.backward()
        method.after_backward(step)
        assert {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None} == {learns}
        assert loss.item() == logs["loss_generator" if learns == "backbone" else "loss_inpainter"].item()
        assert all(p.requires_grad for p in method.inpainter.parameters())
    assert method.backbone.vit.patch_embed.proj.weight.grad is not None


def test_a_step_is_the_formula():
    method = cis().eval()
    batch = batch_of(method, flow_data())
    image, flow = batch["image"], batch["flow"]
    assert -0.5 <= image.min() < 0 < image.max() <= 0.5
    mask = method.masks(image, flow)
    inside, outside, alone = (method.inpainter(image, flow * shown, 1 - shown) for shown in (1 - mask, mask, torch.zeros_like(mask)))
    a, b = ((w * ((flow - v) ** 2 + 1e-6).sqrt()).sum((1, 2, 3)) for w, v in ((mask, inside), (1 - mask, outside)))
    e, f = ((w * ((flow - alone) ** 2 + 1e-6).sqrt()).sum((1, 2, 3)) for w in (mask, 1 - mask))
    epsilon = 75 * 32 * 48 / (384 * 192)
    logs = method.step(batch, 3, torch.Generator())[1]
    assert logs["loss_generator"].item() == pytest.approx((2 - a / (e + epsilon) - b / (f + epsilon)).mean().item(), rel=1e-4)
    assert logs["loss_inpainter"].item() == pytest.approx(((a + b + e + f) / (32 * 48)).mean().item(), rel=1e-4)
    share = mask.mean((1, 2, 3))
    assert logs["smaller_side"].item() == pytest.approx(torch.minimum(share, 1 - share).mean().item(), rel=1e-4)


def test_hidden_flow_does_not_reach_the_inpainter():
    method, hidden = cis(), box_masks(torch.tensor([[0.25, 0.25, 0.5, 0.5]]), 32, 48)
    image, flow = noise(1, 3, 32, 48) / 5, noise(1, 2, 32, 48)
    other = torch.where(hidden.bool(), flow + 1, flow)
    one, two = (method.predict(image, u, hidden) for u in (flow, other))
    assert torch.equal(one.inside, two.inside)
    assert not torch.equal(one.outside, two.outside)
    assert torch.equal(one.image, two.image)


def test_gradients_are_clipped_by_value_and_noise_leaves_a_flat_place():
    flat = torch.full((3,), 1e-7)
    for compat in ("paper", "released"):
        method = cis(compat=compat)
        for p in method.parameters():
            p.grad = torch.full_like(p, 1e-7)
        method.after_backward(2)
        found = torch.cat([p.grad.flatten() for p in method.backbone.parameters()])
        if compat == "paper":
            assert torch.equal(found.unique(), flat[:1])
        else:
            assert 0 <= found.min() <= found.max() <= 0.2
            assert found.mean().item() == pytest.approx(0.1, abs=0.002)
            again = cis(compat=compat)
            for p in again.parameters():
                p.grad = torch.full_like(p, 1e-7)
            again.after_backward(2)
            assert torch.equal(found, torch.cat([p.grad.flatten() for p in again.backbone.parameters()])), "in all processes the same"
    for p in method.parameters():
        p.grad = 3 * noise(*p.shape, seed=1)
    method.after_backward(0)
    for p in method.inpainter.parameters():
        assert torch.equal(p.grad, (3 * noise(*p.shape, seed=1)).clamp(-0.2, 0.2))
    assert mean_absolute([torch.tensor([1.0, -3.0]), torch.tensor([[2.0]])]) == 2


class Moving(Dataset):
    """Textured rectangles that move over a background which moves otherwise, with their flow; the same for a seed."""

    def sample(self, seed):
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(4, generator=generator)
        tall, wide = int(8 + 8 * numbers[0]), int(10 + 12 * numbers[1])
        top, left = int(2 + numbers[2] * (28 - tall)), int(2 + numbers[3] * (44 - wide))
        truth = torch.zeros(1, 32, 48)
        truth[:, top : top + tall, left : left + wide] = 1
        ground, moves = 0.3 * (torch.rand(2, 2, 1, 1, generator=generator) - 0.5)
        flow = ground * (1 - truth) + moves * truth + 0.005 * torch.randn(2, 32, 48, generator=generator)
        coarse = torch.rand(1, 3, 8, 12, generator=generator)
        image = 0.7 * torch.nn.functional.interpolate(coarse, (32, 48), mode="bilinear")[0] + 0.3 * truth
        return {"image": (image * 255).byte(), "flow": flow, "box": draw_box(generator)}, truth[0].bool().numpy()


def test_it_learns_what_moves():
    """Seventy steps on moving rectangles: masks of others hold them far better than the whole frame does."""
    method, data = cis(batch_size=4, steps=70, inpainter_share=0.1, lr=0.008), Moving()
    execution = Execution(workers=0)
    _, optimizer, averager = ready(method, execution, CPU)
    for step in range(70):
        batch = default_collate([data.sample(1000 * step + n)[0] for n in range(4)])
        one_step(method, optimizer, [batch], step, 0, execution, CPU, averager)
    found, whole = [], []
    with torch.no_grad():
        for seed in range(10**6, 10**6 + 20):
            sample, truth = data.sample(seed)
            batch = method.eval().prepare(default_collate([sample]), CPU)
            found.append(jaccard(truth, object_side(method.masks(batch["image"], batch["flow"])[0, 0].numpy() > 0.5)))
            whole.append(truth.mean())
    assert np.mean(found) > 2.5 * np.mean(whole)


# -- the exported decoder ----------------------------------------------------------------------------------------------


def test_the_decoder_travels_with_the_backbone(tmp_path):
    method = cis().eval()
    path = tmp_path / "b.safetensors"
    export_backbone(method.export(), path, run="r", config_hash="0")
    loaded, images, flow = load(path).eval(), noise(2, 3, 32, 48), noise(2, 2, 32, 48, seed=1)
    torch.testing.assert_close(loaded.motion_masks(images, flow), method.backbone.motion_masks(images, flow))
    torch.testing.assert_close(loaded.dense(images), method.backbone.dense(images))
    assert "motion_masks" in loaded.abilities
    assert "with a decoder of masks from image and flow, 8 wide" in str(loaded.report)
    loaded.set_motion_decoder(None)
    assert loaded.weights().keys() == create("vit_nano_patch16", seed=0).weights().keys()
    assert "motion_masks" not in loaded.abilities

    weights, metadata = load_file(path), {"format": "pt", "arch": "vit_nano_patch16"}
    own = sorted(name for name in weights if name.startswith(PREFIX))
    for name, value, said in (
        (own[0], None, own[0].removeprefix(PREFIX)),
        (f"{PREFIX}more", torch.zeros(1), "more"),
        (f"{PREFIX}logits.weight", torch.zeros(2, 7, 3, 3), "logits.weight is 2 x 7 x 3 x 3"),
        (f"{PREFIX}logits.weight", None, "logits.weight is missing"),
    ):
        changed = {k: v for k, v in weights.items() if k != name} | ({} if value is None else {name: value})
        save_file(changed, tmp_path / "changed.safetensors", metadata=metadata)
        with pytest.raises(UserError, match=said):
            load(tmp_path / "changed.safetensors")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_recipes():
    published, default = CisSettings(preset="published").resolved(), CisSettings().resolved()
    assert published.noise_where_flat
    assert not default.noise_where_flat
    assert (published.steps, default.epochs) == (12_500, 40)
    same = ("batch_size", "height", "width", "flow_scale", "epsilon", "inpainter_steps", "generator_steps", "clip_value", "lr")
    assert [getattr(published, name) for name in same] == [getattr(default, name) for name in same]
    assert default.scaled_epsilon == 75
    assert settings().obstacle_to_parts(2) is None
    assert "smaller_side" in COLLAPSED


# -- what every method promises ----------------------------------------------------------------------------------------


def test_work_is_that_which_torch_counts(monkeypatch):
    monkeypatch.setattr(switch, "_enabled", False)
    method = cis("vit_micro_patch16", height=64, width=96, inpainter_width=8, decoder_width=16, inpainter_steps=1, generator_steps=1)
    batch = {"image": noise(2, 3, 64, 96) / 5, "flow": noise(2, 2, 64, 96), "box": torch.tensor([[0.2, 0.2, 0.5, 0.5]] * 2)}
    found = [counted(lambda step=step: method.step(batch, step, torch.Generator())[0].backward()) for step in range(3)]
    mean = 0.25 * found[0] + 0.375 * (found[1] + found[2])
    work = method.settings.step_work(method.backbone.arch)
    assert work.flops == pytest.approx(mean, rel=0.15)
    most = []
    for step in (1, 2):
        with counted_values(method) as values:
            method.step(batch, step, torch.Generator())
        most.append(values.bytes / 4)
    assert work.kept == pytest.approx(max(most), rel=0.1)
    assert work.learnt == pytest.approx(sum(p.numel() for p in method.parameters()), rel=0.1)


@pytest.mark.parametrize("compat", ["paper", "released"])
def test_resume_is_bitwise_equal(tmp_path, compat):
    require_exact_resume(partial(cis, compat=compat), flow_data(), tmp_path, batch_size=2)


def test_processes_and_parts_equal_one_batch(tmp_path):
    require_equal_processes(cis, flow_data(), tmp_path / "processes", 2)
    require_equal_parts(cis, flow_data(), tmp_path / "parts", 2)


def test_the_picture_shows_frames_and_masks(tmp_path):
    method, data = cis().eval(), flow_data()
    for name in ("once", "again"):
        with torch.no_grad():
            method.pictures(data, tmp_path / name)
    files = {path.stem: path for path in (tmp_path / "once").iterdir()}
    assert files.keys() == CisSettings.PICTURES.keys()
    assert files["masks"].read_bytes() == (tmp_path / "again/masks.png").read_bytes()
    drawn = np.asarray(Image.open(files["masks"]))
    assert drawn.shape == (4 * 32, 4 * 48, 3)
    assert np.array_equal(drawn[:32, :48], data.plain(0)["image"].permute(1, 2, 0).numpy())
