"""Distillation: losses against plain loops, its teachers in studies, and what every method promises."""

import math

import pytest
import torch
from torch.utils.data import default_collate

import densewalk as dw
from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.jobs.inputs import read_teachers
from densewalk.jobs.train import make_backbone
from densewalk.methods.distill.augmentation import DistillCrops
from densewalk.methods.distill.losses import feature_loss, map_loss
from densewalk.methods.distill.method import Distill
from densewalk.methods.distill.settings import DistillSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.study.config import parse_study
from densewalk.training.execution import Execution
from densewalk.training.sampler import Item
from tests.fixtures.methods.runs import CPU, Images, fit, require_equal_parts, require_equal_processes, require_exact_resume

SMALL = {"size": 32, "batch_size": 4, "warmup_epochs": 0, "steps": 3, "lr": 0.01}
NANO = "vit_nano_patch16"


class Colors(torch.nn.Module):
    """Means of 8 x 8 px, and their mean: what it sees can be computed by hand."""

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 8)


def colors(**more):
    net = Colors()
    promised = {"stride": 8, "dim": 3, "pooled": lambda images: images.mean((2, 3)), **more}
    return dw.wrap(net, dense=net, **promised)


def distill(total=3, teachers=None, **changes):
    settings = DistillSettings(**{**SMALL, **changes})
    return Distill(settings, create(NANO, seed=1), total, 2, seed=0, teachers=teachers or [colors()])


def crops(**changes):
    return DistillCrops(Images(3, 48, 64), DistillSettings(**{**SMALL, **changes}))


def batch_of(method, count=4, seed=0):
    data = DistillCrops(Images(3, 48, 64), method.settings)
    return method.prepare(default_collate([data[Item(i, seed=i + seed)] for i in range(count)]), CPU)


# -- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "smooth_l1"])
def test_losses_equal_the_plain_loop(kind):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    total, count = 0.0, 0
    for b in range(2):
        for row in range(3):
            for column in range(2):
                s, t = (x[b, :, row, column].tolist() for x in (student, teacher))
                s, t = ([v / math.sqrt(sum(u * u for u in x)) for v in x] for x in (s, t))
                if kind == "cosine":
                    total += 1 - sum(a * c for a, c in zip(s, t, strict=True))
                else:
                    apart = [math.sqrt(5) * abs(a - c) for a, c in zip(s, t, strict=True)]
                    total += sum(x * x / 2 if x < 1 else x - 0.5 for x in apart) / 5
                count += 1
    assert map_loss(student.float(), teacher.float(), kind).item() == pytest.approx(total / count, rel=1e-5)


def test_the_loss_is_zero_for_equal_directions_and_the_largest_for_opposite_ones():
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    for kind in ("cosine", "smooth_l1"):
        assert feature_loss(3 * x, x, kind).item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(-x, x, "cosine").item() == pytest.approx(2)


def test_maps_are_compared_on_the_teacher_s_grid():
    """A linear ramp stays one, on a finer grid and, averaged, on a coarser one."""
    ramp = torch.linspace(1, 4, 4).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    both = torch.cat([ramp, torch.ones_like(ramp)], dim=1)
    coarse = torch.nn.functional.avg_pool2d(both, 2)
    assert map_loss(both, coarse, "cosine").item() < 1e-3
    inside = torch.nn.functional.interpolate(coarse, (4, 4), mode="bilinear")
    assert map_loss(coarse, inside, "cosine").item() == pytest.approx(0, abs=1e-6)


def test_a_step_is_the_weighted_mean_over_teachers():
    teachers = [colors(), create("timm/resnet10t", seed=0).eval()]
    method = distill(teachers=teachers, dense_weight=2.0, pooled_weight=0.5, projector_hidden=8)
    batch = batch_of(method)
    loss, logs = method.step(batch, 0, torch.Generator())
    expected = sum(2.0 * logs[f"dense_loss_{k}"] + 0.5 * logs[f"pooled_loss_{k}"] for k in range(2)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    tokens = method.backbone.tokens(batch["images"])
    vector = teachers[1].pooled(batch["images"])  # its statistics are ImageNet's, too
    assert feature_loss(method.pooled_projectors[1](tokens.cls), vector, "cosine").item() == pytest.approx(
        logs["pooled_loss_1"].item(), rel=1e-4
    )


def test_a_teacher_sees_the_same_pixels_in_its_own_size_and_statistics():
    seen = []
    net = torch.nn.Conv2d(3, 4, 16, 16)
    teacher = dw.wrap(net, dense=lambda x: (seen.append(x), net(x))[1], stride=16, dim=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    method = distill(teachers=[teacher], teacher_size=64, pooled_weight=0.0)
    batch = batch_of(method)
    method.step(batch, 0, torch.Generator())
    assert seen[-1].shape == (4, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(seen[-1], batch["shown"] * std + mean)
    assert seen[-1].amin() >= -1e-5
    assert batch["images"].shape == (4, 3, 32, 32)


def test_what_is_not_augmented_is_encoded_once_and_the_cache_changes_nothing():
    def losses(**changes):
        method, calls = distill(augmentation="none", **changes), []
        encode = method._encode
        method._encode = lambda number, images: (calls.append(len(images)), encode(number, images))[1]
        found = [method.step(batch_of(method, count, seed=7), 0, torch.Generator())[0].item() for count in (2, 4, 3)]
        return found, calls

    kept, calls = losses()
    assert calls == [1] * 4
    again, more = losses(cache_gib=0)
    assert more == [1] * 9
    assert again == kept
    assert DistillSettings(**SMALL, cache_gib=0).all_settings() == DistillSettings(**SMALL).all_settings()


def test_teachers_are_frozen_and_no_part_of_the_state():
    teacher = create("timm/resnet10t", seed=0)
    method = distill(teachers=[teacher.requires_grad_(False)])
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    method.train()
    method.step(batch_of(method), 0, torch.Generator())[0].backward()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any(key.startswith("teachers") for key in method.state_dict())
    assert all(p.grad is not None for p in method.backbone.vit.blocks.parameters())
    grouped = {id(p) for group in method.param_groups() for p in group.params}
    assert grouped == {id(p) for p in method.parameters()}


# -- what every method promises --------------------------------------------------------------------------------------


def test_it_resumes_exactly_and_parts_and_processes_are_one_batch(tmp_path):
    require_exact_resume(distill, crops(), tmp_path)
    require_equal_parts(distill, crops(), tmp_path / "parts")
    require_equal_processes(distill, crops(), tmp_path / "processes")


def test_it_learns_the_teacher(tmp_path):
    def loss(method):
        with torch.no_grad():
            return method.step(batch_of(method), 0, torch.Generator())[0].item()

    settings = {"steps": 40, "augmentation": "none"}
    start = loss(distill(40, **settings))
    trained = fit(lambda: distill(40, **settings), crops(augmentation="none"), tmp_path)
    assert loss(trained) < start / 2
    with torch.no_grad():
        trained.eval().pictures(crops(augmentation="none"), tmp_path / "pictures")
    assert (tmp_path / "pictures/similarity.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 40}, "size 40 is not a multiple of the patch size 16; allowed: e.g. 32"),
        ({"teacher_size": 44}, "teacher_size 44 for Colors, whose images have sides that are multiples of 8"),
        ({"teachers": [colors(pooled=None)]}, "distill needs one vector for each image, which Colors"),
        ({"warmup_epochs": 2}, "warmup_epochs 2 are 4 steps, the training has 3"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(changes, message):
    with pytest.raises(UserError, match=message):
        distill(**changes).param_groups()


# -- studies ---------------------------------------------------------------------------------------------------------


def study(**changes):
    run = {"method": "distill", "init": "random", "arch": NANO, "data": ["v"], "teachers": ["net", "start"], "settings": SMALL, **changes}
    start = {"method": "none", "init": "random", "arch": NANO, "seeds": [0, 1]}
    after = {
        "method": "neco",
        "init": "taught",
        "data": ["v"],
        "settings": {"steps": 2, "batch_size": 2, "global_size": 512, "local_size": 96},
    }
    return {
        "study": "s",
        "videos": {"v": {"source": "v.mp4"}},
        "checkpoints": {"net": {"file": "net.pth", "arch": "timm/resnet50"}},
        "runs": {"start": start, "taught": run, "after": after},
    }


def test_teachers_are_in_the_hash_by_what_they_are_and_not_by_their_names():
    spec = parse_study(study()).run_spec("taught", 0)
    assert [teacher.arch for teacher in spec.teachers] == ["timm/resnet50", NANO]
    renamed = study(teachers=["other", "start"])
    renamed["checkpoints"]["other"] = {**renamed["checkpoints"].pop("net"), "file": "moved/net.pth"}
    assert parse_study(renamed).run_spec("taught", 0).hash == spec.hash
    one = parse_study(study(teachers=["net"])).run_spec("taught", 0)
    strided = study()
    strided["checkpoints"]["net"]["stride"] = 16
    seeds = parse_study(study(seeds=[0, 1]))
    hashes = {spec.hash, one.hash, parse_study(strided).run_spec("taught", 0).hash, seeds.run_spec("taught", 1).hash}
    assert len(hashes) == 4
    assert seeds.run_spec("taught", 1).teachers[1].backbone.seed == 1
    planned = parse_study(study()).plan().backbones["taught/s0"]
    assert planned.teachers == ["net.pth", "results/start/s0/backbone.safetensors"]


def test_a_public_checkpoint_may_be_a_teacher():
    s = parse_study(study(teachers=["efficientnet_lite0"]))
    (teacher,) = s.run_spec("taught", 0).teachers
    assert (teacher.arch, teacher.backbone.stride, teacher.backbone.name) == ("timm/tf_efficientnet_lite0", 16, "efficientnet_lite0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": []}, "runs.taught.teachers: at least 1 needed"),
        ({"teachers": ["nets"]}, "runs.taught.teachers: 'nets' is neither a checkpoint nor a run, did you mean net"),
        ({"teachers": ["taught"]}, "runs.taught: a circle, taught -> taught"),
        ({"teachers": ["after"]}, "a circle, "),
        ({"seeds": [2], "teachers": ["start"]}, r"runs.taught.seeds: start has no seed 2 \(it has \[0, 1\]\)"),
        ({"settings": {**SMALL, "dense_weight": 0, "pooled_weight": 0}}, "dense_weight and pooled_weight are both 0"),
        ({"method": "dino"}, "runs.taught.teachers: there is no key 'teachers' here"),
    ],
)
def test_studies_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        parse_study(study(**changes))


def test_a_job_reads_its_teachers_strictly_and_frozen(tmp_path):
    net = create("timm/resnet10t", seed=0)
    export_backbone(net, tmp_path / "net.safetensors", run="r", config_hash="0")
    s = study(teachers=["net"])
    s["checkpoints"]["net"] = {"file": "net.safetensors", "arch": "timm/resnet10t", "stride": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
    spec = parse_study(s).run_spec("taught", 0)
    (teacher,) = read_teachers(spec, [tmp_path / "net.safetensors"])
    assert (teacher.stride, teacher.statistics) == (16, PixelStatistics((0.5,) * 3, (0.5,) * 3))
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(teacher.pooled(torch.ones(1, 3, 32, 32)), load(tmp_path / "net.safetensors").eval().pooled(torch.ones(1, 3, 32, 32)))
    with pytest.raises(UserError, match="--teacher is given 0 times; allowed: once for each of net"):
        read_teachers(spec, [])


def test_a_job_names_a_teacher_that_is_not_there(tmp_path):
    spec = parse_study(study(teachers=["net"])).run_spec("taught", 0).model_copy(update={"data": {}})
    with pytest.raises(UserError, match=r"checkpoint .*net\.pth does not exist; to do: put it there or correct `file`"):
        make_backbone(spec, None, [], tmp_path / "state", tmp_path / "out", Execution(device="cpu"), teachers=[tmp_path / "net.pth"])
