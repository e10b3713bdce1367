"""Time-Tuning: a whole step of the release, the formulas against plain loops, clips, and the cost of a step."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.data.augmentation.draws import to_rows
from densewalk.data.sources import Source
from densewalk.data.stretches import segments, videos_of
from densewalk.methods.timetuning import method as timetuning
from densewalk.methods.timetuning.clips import crop_clip, make_views, sample_frames
from densewalk.methods.timetuning.method import TimeTuning
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models import blocks
from densewalk.models.architecture import Architecture
from densewalk.models.backbone import Backbone
from densewalk.models.loading import create
from densewalk.ops.attention_mask import top_mass_mask
from densewalk.ops.label_propagation import follow, propagate
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item
from tests.fixtures.helpers import shared
from tests.fixtures.methods.drifting import drifting_clips, learned
from tests.fixtures.methods.timetuning import clips, one_update, small
from tests.fixtures.receipts import images_receipt, sequences_receipt, video_receipt


def make(settings=None, *, arch="vit_nano_patch16", steps=4):
    return TimeTuning(settings or small(), create(arch, seed=0), steps, 2, seed=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- the release's step ------------------------------------------------------------------------------------------------


def released_state(values, prefix):
    """The release's state dict in our names: (student, teacher)."""
    state = {k.removeprefix(prefix): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}
    networks = {}
    for ours, theirs, prototypes in (("student", "feature_extractor.", "prototypes"), ("teacher", "teacher.", "teacher_prototypes")):
        networks[ours] = {_ours(k.removeprefix(theirs)): v for k, v in state.items() if k.startswith(theirs)}
        networks[ours]["prototypes"] = state[prototypes]
    return networks["student"], networks["teacher"]


def _ours(name):
    return name.replace("backbone.", "backbone.vit.", 1) if name.startswith("backbone.") else name.replace("head.", "head.mlp.", 1)


@pytest.fixture(scope="module")
def released():
    values = np.load(shared("parity/timetuning_step.npz"))
    arch = Architecture(name="released", dim=48, depth=12, heads=3, patch=16)
    settings = TimeTuningSettings(
        compat="released", batch_size=2, steps=4, head_widths=[64, 64, 32, 16], prototypes=20, lr=1e-2, backbone_lr=1e-3
    )
    method = TimeTuning(settings, Backbone(arch), 4, 4, seed=0)
    student, teacher = released_state(values, "teacher/model0/")
    method.student.load_state_dict(student)
    method.teacher.load_state_dict(teacher)
    return values, method, torch.from_numpy(values["teacher/steps/0/clip"])


def test_parity_of_a_whole_step(released):
    values, method, clip = released
    loss, gradients, _ = one_update(method, clip)
    assert loss.item() == pytest.approx(float(values["teacher/steps/0/loss"]), abs=1e-5)

    prefix = "teacher/steps/0/grads/"
    expected = {_student(k.removeprefix(prefix)): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm(), name

    # the very first Adam step is lr * sign(gradient): where a gradient is noise around 0, so is its sign
    student, teacher = released_state(values, "teacher/steps/0/model_after/")
    for network, after in ((method.student, student), (method.teacher, teacher)):
        for name, weight in network.state_dict().items():
            sure = expected["student." + name].abs() > 1e-6 if "student." + name in expected else torch.ones_like(weight, dtype=torch.bool)
            if name != "prototypes":
                assert (weight - after[name])[sure].abs().max() <= 1e-5, name
        assert (network.prototypes - after["prototypes"]).abs().max() <= 1e-5


def _student(name):
    return "student." + (name if name == "prototypes" else _ours(name.removeprefix("feature_extractor.")))


def test_parity_of_groups_and_schedules(released):
    values, method, _ = released
    groups = {g.name: g for g in method.param_groups()}
    names = {id(p): n for n, p in method.named_parameters()}
    listing = ["prototypes/decay", "prototypes/no_decay", "head/decay", "head/no_decay", "backbone/decay", "backbone/no_decay"]
    for i, name in enumerate(listing):
        listed = {_student(n) for n in values[f"teacher/param_groups/{i}/names"].tolist()}
        assert {names[id(p)] for p in groups[name].params} == listed
        assert groups[name].lr[0] == pytest.approx(float(values[f"teacher/param_groups/{i}/lr"]))
        assert groups[name].weight_decay[0] == pytest.approx(float(values[f"teacher/param_groups/{i}/wd"]))
        assert groups[name].weight_decay[1] == pytest.approx(float(values["teacher/steps/0/wd"][i]))
    assert method.momentum[1] == pytest.approx(float(values["teacher/steps/0/momentum"]))
    # the learning rate was recorded after the first step, too, of a run of three steps: the other two tables are one longer
    three = TimeTuning(method.settings.model_copy(update={"steps": 3}), Backbone(method.student.backbone.arch), 3, 3, seed=0)
    found = {group.name: group.lr[1] for group in three.param_groups()}
    assert [found[name] for name in listing] == pytest.approx(values["teacher/steps/0/lr"].tolist())


def test_parity_of_the_inner_results(released):
    values, method, clip = released
    student, teacher = released_state(values, "teacher/model0/")
    method.student.load_state_dict(student)
    method.teacher.load_state_dict(teacher)
    with torch.no_grad():
        trunk = method.student.encode_trunk(clip)
        features = method.student.encode(trunk)
        assignment = method.assign(trunk, features, generator())
        labels = method.forward_labels(features, assignment)
    assert torch.allclose(features.flatten(0, 1), torch.from_numpy(values["teacher/steps/0/backbone_features"]), atol=1e-5)
    assert torch.allclose(assignment.flatten(0, 1), torch.from_numpy(values["teacher/steps/0/sinkhorn/0/q"]), atol=1e-6)
    propagated = torch.stack(list(follow(features.unbind(1), assignment.transpose(1, 2), method.rule)), dim=1)
    for i, own in enumerate(labels):
        expected = torch.from_numpy(values[f"teacher/steps/0/propagated/{i}"]).flatten(2)
        assert (propagated[i].double() - expected).abs().max() <= 1e-6
        assert torch.equal(propagated[i].argmax(1), expected.argmax(1))
        assert torch.equal(own, expected[-1].argmax(0))


def test_parity_of_every_assignment_that_the_release_computes(released):
    """Of first and last frame, by teacher and student: it uses the first of the four."""
    values, method, _ = released
    for i in range(4):
        scores = torch.from_numpy(values[f"teacher/steps/0/sinkhorn/{i}/scores"])
        shares = method.sinkhorn_shares(scores, across_processes=False)
        assert (shares - torch.from_numpy(values[f"teacher/steps/0/sinkhorn/{i}/q"])).abs().max() <= 1e-6


# -- the formulas ------------------------------------------------------------------------------------------------------


def plain_loss(method, batch):
    """The whole step from its formulas, every frame through every network by itself, in float64, with loops where it hurts least."""
    s = method.settings
    student, teacher = method.student.double(), method.teacher.double() if method.teacher else method.student.double()
    features = torch.stack([student.backbone.tokens(batch[:, t].double()).patches for t in range(batch.shape[1])], dim=1)
    assigned = range(batch.shape[1]) if s.assigned_frames == "all" else [0]
    vectors = [F.normalize(teacher.head.mlp(teacher.backbone.tokens(batch[:, t].double()).patches), dim=-1) for t in assigned]
    x = (torch.stack(vectors).flatten(0, 2) @ teacher.prototypes.T / s.sinkhorn_epsilon).exp()
    for _ in range(s.sinkhorn_iterations):
        for column in range(x.shape[1]):
            x[:, column] /= x[:, column].sum() * x.shape[1]
        for row in range(x.shape[0]):
            x[row] /= x[row].sum() * x.shape[0]
    first = (x * x.shape[0])[: len(batch) * features.shape[2]].unflatten(0, (len(batch), -1))
    unit, labels = F.normalize(features, dim=-1), [first.transpose(1, 2)]
    for t in range(1, batch.shape[1]):
        context = [0, *range(max(1, t - s.context), t)]
        labels.append(propagate([unit[:, c] for c in context], [labels[c] for c in context], unit[:, t], method.rule))
    hard = labels[-1].argmax(dim=1)
    scores = F.normalize(student.head.mlp(features[:, -1]), dim=-1) @ student.prototypes.T / s.student_temperature
    return torch.stack([-row.log_softmax(0)[k] for row, k in zip(scores.flatten(0, 1), hard.flatten(), strict=True)]).mean()


@pytest.mark.parametrize(
    ("variant", "assigned", "arch"),
    [
        ("timetuning", "first", "vit_nano_patch16"),
        ("simplified", "all", "vit_nano_patch16"),
        ("timetuning", "all", "vit_nano_patch8_reg4"),
    ],
)
def test_step_equals_its_formulas(variant, assigned, arch):
    method = make(small(variant=variant, assigned_frames=assigned), arch=arch)
    if method.teacher is not None:  # later in a training: the networks differ
        for p, learnt in zip(method.teacher.parameters(), method.student.parameters(), strict=True):
            p.data += 0.1 * learnt.requires_grad * torch.randn(p.shape, generator=generator())
    batch = clips(2, 3)
    loss, _ = method.step(batch, 0, generator())
    assert loss.item() == pytest.approx(plain_loss(method, batch).item(), abs=1e-5)


def test_gradients_equal_those_of_the_plain_forward():
    """Sharing the trunk and leaving frames out of the graph changes no gradient."""
    method, plain = make(), make()
    batch = clips(2, 3)
    method.step(batch, 0, generator())[0].backward()
    plain_loss(plain, batch).backward()
    expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    for name, p in method.named_parameters():
        if p.requires_grad:
            assert (p.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_only_the_last_blocks_learn():
    method = make(small(trainable_blocks=1))
    learnt = {n for group in method.param_groups() for p in group.params for n, q in method.named_parameters() if p is q}
    assert learnt == {n for n, p in method.named_parameters() if p.requires_grad}
    assert {n.split(".")[4] for n in learnt if "blocks" in n} == {"1"}
    assert not any("norm.weight" in n and "blocks" not in n for n in learnt)
    _, gradients, _ = one_update(method, clips(2, 3))
    assert gradients.keys() == learnt


def test_teacher_is_a_moving_average_in_paper_and_nearly_the_student_as_released():
    for compat, share in (("paper", 1 - 0.5), ("released", 0.5)):
        method = make(small(compat=compat, momentum=0.0), steps=2)
        assert method.momentum == pytest.approx([0.0, 0.5, 1.0])
        before = [p.clone() for p in method.teacher.parameters()]
        one_update(method, clips(2, 3), at=0)
        for old, new, student in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
            if new is not method.teacher.prototypes:
                assert torch.allclose(new, old * (1 - share) + student * share, atol=1e-6)
    last_student = [p.clone() for p in method.student.parameters()]
    method.after_update(1)  # the schedules end where the training does: momentum 1
    for new, student in zip(method.teacher.parameters(), last_student, strict=True):
        assert torch.allclose(new, student, atol=1e-6)


def test_prototypes_keep_unit_length():
    method = make(small(momentum=0.0, lr=0.5), steps=2)
    one_update(method, clips(2, 3))
    for network in (method.student, method.teacher):
        assert torch.allclose(network.prototypes.norm(dim=1), torch.ones(6), atol=1e-6)


def test_schedules_have_a_value_for_every_step():
    method = make(steps=3)
    for at in range(3):
        one_update(method, clips(2, 3, seed=at), at)
    for group in method.param_groups():
        assert len(group.lr) == len(group.weight_decay) == 3


def test_block_passes_of_a_clip(monkeypatch):
    """50 for the paper's 12 blocks, 2 of them learning, and 4 frames; the release runs 288."""
    method = make(small(frames=4), arch=Architecture(name="deep", dim=12, depth=12, heads=2, patch=16))
    passes, run_block = [], blocks.run_block
    monkeypatch.setattr(blocks, "run_block", lambda block, x, rope: passes.append(len(x)) or run_block(block, x, rope))
    method.step(clips(2, 4), 0, generator())
    assert sum(passes) == 2 * 50


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("compat", ["paper", "released"])
def test_queue_takes_the_batch_before_the_assignment(teacher, compat):
    """As released: 30 entries and 10 new ones a step are full, and used, in the third step, not the fourth; with or without a teacher."""
    method = make(small(queue=30, queue_patches_per_clip=5, teacher=teacher, compat=compat))
    network = method.teacher if teacher else method.student
    batch = clips(2, 3)
    trunk = method.student.encode_trunk(batch)
    features = method.student.encode(trunk).detach()
    vectors = network.head(features[:, 0]).detach().flatten(0, 1)
    alone = timetuning.sinkhorn(vectors @ network.prototypes.T, epsilon=0.05, iterations=10)
    for filled in (10, 20):
        assert torch.equal(method.assign(trunk, features, generator(filled)).flatten(0, 1), alone)
        assert (method.queue.norm(dim=1) > 0.5).sum() == filled
    joint = method.assign(trunk, features, generator(30)).flatten(0, 1)
    assert (method.queue.norm(dim=1) > 0.5).all()
    assert all((entry - vectors).abs().amax(dim=1).min() < 1e-6 for entry in method.queue)
    with_queue = timetuning.sinkhorn(torch.cat([vectors, method.queue]) @ network.prototypes.T, epsilon=0.05, iterations=10)
    assert torch.allclose(joint, with_queue[:18], atol=1e-6)
    assert (joint - alone).abs().max() > 1e-3
    newest = method.queue[:20].clone()
    method.assign(trunk, features, generator())
    assert torch.equal(method.queue[10:], newest), "the oldest leave"
    assert "queue" in method.state_dict()


def test_a_batch_that_fills_the_queue_is_assigned_with_it_at_once():
    method = make(small(queue=4, queue_patches_per_clip=5))
    loss, _ = method.step(clips(2, 3), 0, generator())
    assert loss.item() != make().step(clips(2, 3), 0, generator())[0].item()
    assert make(small(queue=4, assigned_frames="all", variant="simplified")).step(clips(2, 3), 0, generator())[0].isfinite()


def test_top_mass_mask_keeps_the_smallest_set():
    attention = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]])
    assert top_mass_mask(attention, 0.6).tolist() == [[False, True, True, False], top_mass_mask(attention, 0.6)[1].tolist()]
    assert top_mass_mask(attention, 0.6)[1].sum() == 3
    assert top_mass_mask(attention, 1.0).sum() == 8


def test_foreground_mass_restricts_the_loss():
    method = make(small(foreground_mass=0.5))
    batch = clips(2, 3)
    mask = method.foreground(batch[:, -1])
    assert 0 < mask.sum() < mask.numel()
    loss, _ = method.step(batch, 0, generator())
    last = method.student.backbone.tokens(batch[:, -1]).patches
    with torch.no_grad():
        trunk = method.student.encode_trunk(batch)
        features = method.student.encode(trunk)
        labels = method.forward_labels(features, method.assign(trunk, features, generator()))
        scores = method.student.head(last) @ method.student.prototypes.T / 0.1
    per_clip = [F.cross_entropy(scores[i][mask[i]], labels[i][mask[i]]) for i in range(2)]
    assert loss.item() == pytest.approx(torch.stack(per_clip).mean().item(), abs=1e-5)


def test_loss_falls_on_a_fixed_batch():
    method = make(small(lr=1e-2, backbone_lr=1e-3), steps=16)
    optimizer = make_optimizer(method)
    losses = []
    for at in range(16):
        set_schedules(optimizer, at)
        loss, _ = method.step(clips(2, 3), at, generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_update(at)
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_equal_seeds_give_equal_runs():
    torch.manual_seed(1)
    first = make()
    torch.manual_seed(2)
    again = make()
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one_update(first, clips(2, 3))[0], one_update(again, clips(2, 3))[0])


def test_export_is_the_student():
    method = make()
    assert method.export() is method.student.backbone


def read_strip(path, rows, frames):
    """[rows, frames, size, size, 3]"""
    picture = np.asarray(Image.open(path))
    return picture.reshape(rows, 48, frames, 48, 3).swapaxes(1, 2)


def test_pictures_show_frames_and_their_prototypes(tmp_path):
    _pictures(tmp_path / "moving" / "a", 5)
    _pictures(tmp_path / "moving" / "b", 5)
    data = TimeTuning.dataset(small(), [Source("s", sequences_receipt(tmp_path / "moving"))])
    method = make()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    for name in ("once", "again"):
        with torch.no_grad():
            method.pictures(data, tmp_path / name)
    assert (tmp_path / "once/prototypes.png").read_bytes() == (tmp_path / "again/prototypes.png").read_bytes()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    strip = read_strip(tmp_path / "once/prototypes.png", rows=4, frames=3)
    clip = data.plain(1).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(strip[2], clip)
    assert (strip[3] != clip).any(axis=-1).mean() > 0.9, "every patch has a prototype's colour"


def test_prototypes_of_a_still_stay_where_they_are(tmp_path):
    _pictures(tmp_path / "still", 1)
    data = TimeTuning.dataset(small(radius=0, top_k=1), [Source("s", images_receipt(tmp_path / "still"))])
    with torch.no_grad():
        make(small(radius=0, top_k=1)).pictures(data, tmp_path)
    frames, prototypes = read_strip(tmp_path / "prototypes.png", rows=2, frames=3)
    for row in (frames, prototypes):
        assert np.array_equal(row[0], row[1])
        assert np.array_equal(row[0], row[2])
    assert not np.array_equal(frames, prototypes)


def test_bfloat16_autocast_computes_the_loss_in_float32():
    method = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logs = method.step(clips(2, 3), 0, generator())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(make().step(clips(2, 3), 0, generator())[0].item(), rel=0.1)
    assert set(logs) == {"assignment_confidence", "prototypes_used", "student_agrees"}


# -- clips -------------------------------------------------------------------------------------------------------------


def test_uniform_frames_are_distinct_and_in_order_over_the_whole_video():
    settings = small(frames=4).resolved()
    chosen = [sample_frames(30, settings, generator(seed)) for seed in range(200)]
    assert all(sorted(set(c)) == c and len(c) == 4 for c in chosen)
    assert {n for c in chosen for n in c} == set(range(30))
    short = [sample_frames(2, settings, generator(seed)) for seed in range(50)]
    assert all(sorted(c) == c and len(c) == 4 and set(c) <= {0, 1} for c in short)


@pytest.mark.parametrize(("length", "step", "distance"), [(30, 1, 1), (30, 5, 5), (8, 5, 2), (4, 3, 1)])
def test_dense_frames_are_evenly_spaced(length, step, distance):
    settings = small(frames=4, sampling="dense", dense_step=step).resolved()
    chosen = [sample_frames(length, settings, generator(seed)) for seed in range(300)]
    assert all(np.diff(c).tolist() == [distance] * 3 for c in chosen)
    assert {c[0] for c in chosen} == set(range(length - 3 * distance))


def test_dense_frames_of_a_video_shorter_than_the_clip_repeat_its_last():
    settings = small(frames=4, sampling="dense").resolved()
    assert sample_frames(2, settings, generator()) == [0, 1, 1, 1]
    assert sample_frames(1, settings, generator()) == [0, 0, 0, 0]


def test_segments_are_even_and_respect_usable_parts_and_cuts():
    receipt = video_receipt(fps=10.0, usable=((5, 105), (200, 203), (300, 312)), cuts=(55, 150, 305))
    found = segments(receipt, seconds=2.0, least=4)
    assert found == [(5, 30), (30, 55), (55, 80), (80, 105), (300, 305), (305, 312)]


def _pictures(folder, count, size=(40, 60)):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / f"{i:05d}.png")


def test_folders_of_frames_and_of_pictures(tmp_path):
    _pictures(tmp_path / "sequences" / "a", 5)
    _pictures(tmp_path / "sequences" / "b", 2)
    _pictures(tmp_path / "pictures", 3)
    sources = [Source("s", sequences_receipt(tmp_path / "sequences")), Source("p", images_receipt(tmp_path / "pictures"))]
    data = TimeTuning.dataset(small(), sources)
    assert len(data) == 2 + 3
    assert [v.length for v in data.videos] == [5, 2, 1, 1, 1]
    for index in range(5):
        sample, again, other = (data[Item(index, seed=seed)] for seed in (4, 4, 5))
        assert sample["clip"].shape == (3, 3, 48, 48)
        assert all(torch.equal(sample[key], again[key]) for key in sample)
        assert not torch.equal(sample["clip"], other["clip"])
    chosen = Source("s", sequences_receipt(tmp_path / "sequences", chosen=("b",)))
    assert [v.length for v in videos_of(chosen, 5.0, 3)] == [2]
    still = data[Item(3, seed=4)]["clip"]
    assert torch.equal(still[0], still[2])


def test_video_files_are_cut_into_segments(tmp_path):
    from densewalk.data.settings import VideoSettings
    from densewalk.data.video.encode import write_video
    from densewalk.data.video.transcode import transcode

    frames = [np.full((48, 64, 3), 8 * i, np.uint8) for i in range(24)]
    for frame in frames:
        frame[::2, ::2] //= 2
    write_video(tmp_path / "walk.mp4", frames, 8.0)
    settings = VideoSettings(source=str(tmp_path / "walk.mp4"))
    source = Source("walk", transcode(settings, tmp_path / "copy.mp4"))
    videos = videos_of(source, 1.0, 3)
    assert [(v.start, v.length) for v in videos] == [(0, 8), (8, 8), (16, 8)]
    assert videos[1].read([videos[1].start])[0].float().mean() == pytest.approx(np.mean(frames[8]), abs=4)
    assert TimeTuning.dataset(small(segment_seconds=1.0), [source])[Item(2, seed=0)]["clip"].shape == (3, 3, 48, 48)
    with pytest.raises(UserError, match=r"walk: no usable part without a scene cut has 30 frames"):
        videos_of(source, 5.0, 30)


def augment(clip, settings, generator):
    """One clip's view."""
    crop, drawn = crop_clip(clip, settings, generator)
    return make_views({"clip": crop[None], "distortion": to_rows([drawn])}, settings, torch.device("cpu"))[0]


def test_augmentation_is_the_same_for_all_frames_of_a_clip():
    frame = torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8, generator=generator())
    for seed in range(20):
        clip = augment(frame.repeat(3, 1, 1, 1), small().resolved(), generator(seed))
        assert torch.equal(clip[0], clip[1])
        assert torch.equal(clip[0], clip[2])


def test_white_is_normalized_with_the_right_red():
    """Crops and flips leave a white clip white; a seed without jitter and grey is taken."""
    white = torch.full((2, 3, 60, 80), 255, dtype=torch.uint8)
    for compat, red in (("paper", 0.229), ("released", 0.228)):
        reds = {round(augment(white, small(compat=compat).resolved(), generator(seed))[:, 0].max().item(), 4) for seed in range(20)}
        assert max(reds) == pytest.approx(0.515 / red, abs=1e-3)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_variants_and_switches():
    paper = TimeTuningSettings().resolved()
    assert (paper.sampling, paper.teacher, paper.assigned_frames, paper.context) == ("uniform", True, "first", 7)
    assert (paper.red_std, paper.swapped_momentum) == (0.229, False)
    simplified = TimeTuningSettings(variant="simplified", context=3, compat="released").resolved()
    assert (simplified.sampling, simplified.teacher, simplified.assigned_frames, simplified.context) == ("dense", False, "all", 3)
    assert (simplified.red_std, simplified.swapped_momentum) == (0.228, True)
    assert (TimeTuningSettings().epochs, TimeTuningSettings(variant="simplified").epochs) == (100, 800)
    assert TimeTuningSettings(variant="simplified", epochs=5).epochs == 5
    assert TimeTuningSettings(variant="simplified", steps=5).epochs is None
    dumped = simplified.model_dump(mode="json")
    assert TimeTuningSettings.model_validate(dumped).model_dump(mode="json") == dumped


def test_radius_zero_is_no_window():
    assert small(radius=0) == small(radius=None)
    assert make(small(radius=0)).rule.reach == 3, "the whole grid"


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match=r"size 50 is not a multiple of the patch size 16; allowed: e\.g\. 48"):
        make(small(size=50))
    with pytest.raises(UserError, match="trainable_blocks 3: vit_nano_patch16 has 2 blocks"):
        make(small(trainable_blocks=3))


# -- the preset for small videos ---------------------------------------------------------------------------------------


def test_the_preset_for_small_videos_learns():
    """The student finds the propagated labels of clips that it has not seen, from a camera that drifts over textures."""
    settings = TimeTuningSettings(preset="small_video", steps=24, size=48)
    curve = learned(make(settings, steps=24), lambda step: drifting_clips(settings.batch_size, 48, seed=step))
    first, last = curve["loss"]
    assert last < 0.9 * first
    assert curve["student_agrees"][1] > curve["student_agrees"][0]
    assert min(curve["prototypes_used"]) > 0.5, "clips do not fall into a few prototypes"


def test_a_length_or_a_preset_comes_before_the_length_of_the_simplified_variant():
    simplified = {"variant": "simplified"}
    assert TimeTuningSettings(**simplified, preset=None, steps=None, budget=None, epochs=None).epochs == 800
    assert TimeTuningSettings(**simplified, preset="small_video").steps == 300
    assert TimeTuningSettings(**simplified, budget={"cpu_seconds": 60}).budget.cpu_seconds == 60
    assert TimeTuningSettings(**simplified, preset="small_video", epochs=7).epochs == 7


def test_no_preset_leaves_the_hash_of_earlier_runs():
    assert "preset" not in TimeTuningSettings().model_dump()
