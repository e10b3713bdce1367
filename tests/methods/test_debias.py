"""The SVD debias as a run: the exported file, its map at several sizes, what it refuses, and its place in a study."""

import copy

import pytest
import torch

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.data.images import normalize
from densewalk.jobs.train import make_backbone
from densewalk.methods.debias.method import debias
from densewalk.methods.debias.settings import DebiasSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.study.config import parse_study
from densewalk.training.execution import Execution

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
LABELLED = {"root": "d", "dataset": "toy", "layout": "masks", "images": "i", "masks": "m", "num_classes": 4}
STUDY = {
    "study": "s",
    "images": {"some": {"source": "data/some"}},
    "runs": {
        "start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"},
        "plain": {"method": "debias", "init": "start", "settings": {"components": 3}, "sweep": {"one": {"components": 1}}},
    },
    "evaluations": {"incontext": {"protocol": "incontext", "settings": LABELLED}},
}


def changed(**runs):
    study = copy.deepcopy(STUDY)
    study["runs"] |= runs
    return study


def plain_debias(backbone, images, components):
    """The formula, token by token."""
    black = backbone.dense(normalize(torch.zeros(1, 3, *images.shape[-2:]), IMAGENET))[0].flatten(1).double()
    columns = [token / token.norm() for token in black.T]
    e = torch.stack(columns, dim=1)
    e = e - e.mean(1, keepdim=True)
    u = torch.linalg.svd(e).U[:, :components]
    maps = backbone.dense(images).double()
    found = torch.zeros_like(maps)
    for b in range(len(maps)):
        for i in range(maps.shape[2]):
            for j in range(maps.shape[3]):
                z = maps[b, :, i, j] / maps[b, :, i, j].norm()
                left = z - u @ (u.T @ z)
                found[b, :, i, j] = left / left.norm()
    return found


@torch.no_grad()
def test_the_exported_map_equals_the_formula_at_every_size(tmp_path):
    backbone = create("vit_nano_patch16", seed=1).eval()
    export_backbone(debias(DebiasSettings(components=3), backbone), tmp_path / "b.safetensors", run="r", config_hash="0")
    loaded = load(tmp_path / "b.safetensors").eval()
    for images in (IMAGES, IMAGES.transpose(2, 3), IMAGES[..., :32]):
        torch.testing.assert_close(loaded.dense(images), plain_debias(backbone, images, 3).float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loaded.dense_and_attention(IMAGES)[0], loaded.dense(IMAGES))
    torch.testing.assert_close(loaded.pooled(IMAGES), backbone.pooled(IMAGES))
    assert loaded.abilities == {"dense", "pooled", "attention"}


def test_what_cannot_be_debiased_is_said():
    backbone = create("vit_nano_patch16", seed=1).eval()
    with pytest.raises(UserError, match="48 singular vectors out of a map of 48 dimensions; allowed: less than 48"):
        debias(DebiasSettings(components=48), backbone)
    once = debias(DebiasSettings(components=10), backbone).eval()
    with pytest.raises(UserError, match="has position taken out already"):
        debias(DebiasSettings(components=3), once)
    with pytest.raises(UserError, match="48 dimensions and 6 places; allowed: less than 6"):
        once.dense(IMAGES)


def test_a_run_of_it_is_made_like_any_other_and_can_be_taken_over(tmp_path):
    study = parse_study(STUDY)
    assert list(study.runs) == ["start", "plain", "plain_one"]
    assert len({study.run_spec(run, 0).hash for run in study.runs}) == 3
    files = {}
    for run in ("start", "plain"):
        files[run] = tmp_path / run / "backbone.safetensors"
        init = None if run == "start" else files["start"]
        make_backbone(study.run_spec(run, 0), init, [], tmp_path / "state", tmp_path / run, Execution(device="cpu"))
    maps = {run: load(file).eval().dense(IMAGES) for run, file in files.items()}
    torch.testing.assert_close(maps["plain"].norm(dim=1), torch.ones(2, 2, 3))
    assert not torch.allclose(maps["plain"], maps["start"])
    assert "first 3 left singular vectors of the tokens of a black image" in (tmp_path / "plain/card.md").read_text()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"next": {"method": "debias", "init": "plain", "settings": {}}}, "plain gives a changed map alone"),
        ({"next": {"method": "neco", "init": "plain", "data": ["some"], "settings": {}}}, "plain gives a changed map alone"),
        ({"next": {"method": "debias", "init": "start", "data": ["some"], "settings": {}}}, "data"),
        ({"next": {"method": "debias", "init": "start"}}, "settings"),
    ],
)
def test_a_study_says_what_cannot_be_chained(runs, message):
    with pytest.raises(UserError, match=message):
        parse_study(changed(**runs))


def test_an_evaluation_of_layers_is_refused_before_anything_runs():
    study = changed()
    study["evaluations"] = {"upernet": {"protocol": "ade20k_linear", "settings": {"root": "d", "dataset": "ADE20K"}}}
    with pytest.raises(UserError, match=r"needs maps of several layers, which plain .* has not; to do: name in `runs` those that have it"):
        parse_study(study)


def test_it_cannot_claim_its_start_s_published_row():
    checkpoint = {"method": "debias", "init": "dino_vits16", "settings": {}, "labels": {"method": "DINO", "arch": "ViT-S/16"}}
    labels = parse_study(changed(other={"method": "none", "init": "dino_vits16"})).labels_of("other")
    with pytest.raises(UserError, match="the published row"):
        parse_study(changed(other={**checkpoint, "labels": labels.model_dump()}))
