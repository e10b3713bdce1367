"""Motion segmentation: the border rule, J, both means, floors, the layouts of DAVIS-2016, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.video_objects import list_davis
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.motion_segmentation.evaluate import Scores, describe_data, evaluate, jaccard, moving_pixels, otsu, summarize
from densewalk.evaluations.motion_segmentation.settings import MotionSegmentationSettings
from densewalk.jobs.train import make_backbone
from densewalk.models.backbone import Backbone
from densewalk.models.families.motion import border_share, object_side
from densewalk.models.loading import load
from densewalk.models.timm_models import named_architecture
from densewalk.ops.optical_flow import frame_flow, is_still
from densewalk.study.config import parse_study
from densewalk.training.execution import Execution
from tests.evaluations.test_davis import write_sequence
from tests.fixtures.dense import write_backbone
from tests.fixtures.helpers import shared


def settings(root, **changes):
    return MotionSegmentationSettings(**{"root": str(root), "dataset": "toy", "height": 64, "width": 96, **changes})


class Movers(Backbone):
    """Takes for one side what moves more than the mean."""

    def __init__(self, *, inverted=False):
        super().__init__(named_architecture("vit_nano_patch16"))
        self.set_motion_decoder(8)
        self.inverted = inverted

    def motion_masks(self, images, flow):
        found = ((flow - flow.flatten(2).median(dim=2).values[..., None, None]).norm(dim=1, keepdim=True) > 1).float()
        return 1 - found if self.inverted else found


@pytest.fixture
def root(tmp_path):
    for name, frames in (("boat", 5), ("kites", 8)):
        write_sequence(tmp_path / "DAVIS", name, frames=frames, year=2016, objects=1, speed=3)
    return tmp_path / "DAVIS"


def run(root, out, network=None, **changes):
    path = write_backbone(root.parent / "b.safetensors", motion=True)
    return evaluate(settings(root, **changes), path, Job(out=out, state=out / "state", network=network))


# -- rules -------------------------------------------------------------------------------------------------------------


def test_the_border_counts_corners_twice_and_decides_the_side():
    mask = np.zeros((10, 12), bool)
    mask[:2, :2] = True
    assert border_share(mask) == 8 / (2 * 2 * (10 + 12))
    assert object_side(mask) is mask
    mask[:] = True
    mask[4:6, 5:7] = False
    assert border_share(mask) == 1
    assert np.array_equal(object_side(mask), ~mask)
    for columns, kept in ((8, True), (9, False)):  # of 12: 52 and 56 of the 88 pixels
        mask[:] = False
        mask[:, :columns] = True
        assert (border_share(mask) < 0.6) == kept
        assert object_side(mask)[5, 0] == kept


def test_j_and_its_means():
    truth, found = np.zeros((2, 4, 4), bool)
    assert jaccard(truth, found) == 1
    truth[:2], found[1:3] = True, True
    assert jaccard(truth, found) == 4 / 12
    assert jaccard(truth, np.zeros((4, 4), bool)) == 0
    scores = {
        "long": Scores(np.full(6, 0.2), np.full(6, 0.1), np.full(6, 0.3)),
        "short": Scores(np.full(2, 0.8), np.full(2, 0.1), np.full(2, 0.1)),
    }
    paper, released = (summarize(settings("d", compat=compat).resolved(), scores) for compat in ("paper", "released"))
    assert (paper.metrics["J"], paper.n, paper.unit) == (pytest.approx(50), 2, "sequences")
    assert (released.metrics["J"], released.n, released.unit) == (pytest.approx(35), 8, "frames")
    assert (paper.metrics["J_flow"], released.metrics["J_flow"]) == (pytest.approx(20), pytest.approx(25))
    assert (list(paper.units.ids), paper.units.clusters) == (["long", "short"], ())
    assert released.units.ids[:2] == ["long/00001", "long/00002"]
    assert released.units.drawn == 2
    assert settings("d").protocol == "motion segmentation, 2016 val, 96 x 64 px, flow: DIS, compat paper"
    assert settings("d").published_protocol is None


def test_otsu_and_what_moves():
    values = np.concatenate([np.linspace(0, 1, 50), np.linspace(9, 10, 8)])
    best = max(
        np.linspace(0, 10, 400)[1:-1],
        key=lambda edge: (
            (values <= edge).sum() * (values > edge).sum() * (values[values <= edge].mean() - values[values > edge].mean()) ** 2
        ),
    )
    assert 1 <= otsu(values) < 9
    assert (values > otsu(values)).tolist() == (values > best).tolist()
    flow = np.zeros((20, 30, 2), np.float32)
    flow[..., 0] = -4
    flow[5:10, 5:12] = (3, 2)
    found = moving_pixels(flow)
    assert found[5:10, 5:12].all()
    assert found.sum() == 35


def test_flow_of_frames_is_filtered_and_clipped():
    noise = np.random.default_rng(0).integers(0, 256, (12, 30)).astype(np.float32)
    smooth = np.kron(noise, np.ones((8, 8)))
    smooth = (smooth + np.roll(smooth, 3, 1) + np.roll(smooth, 3, 0) + np.roll(smooth, 5, 1)) / 4
    frames = [np.repeat(smooth[:, start : start + 180, None], 3, axis=2).astype(np.uint8) for start in (0, 3)]
    flow = frame_flow(*frames)
    assert flow.dtype == np.float32
    assert np.median(flow[..., 0]) == pytest.approx(-3, abs=0.1)
    assert abs(flow).max() <= 40
    assert not is_still(flow)
    assert is_still(frame_flow(frames[0], frames[0]))
    assert is_still(np.full((4, 4, 2), 0.2, np.float32))


# -- whole evaluations -------------------------------------------------------------------------------------------------


def test_what_moves_is_found_whichever_side_the_network_calls_it(root, tmp_path):
    result = run(root, tmp_path / "out", Movers())
    assert result.metrics["J"] > 60
    assert result.metrics["J"] > result.metrics["J_whole"]
    assert result.metrics["J_whole"] == pytest.approx(100 * 32 * 24 / (64 * 96))
    assert result.details["sequences"]["kites"]["frames"] == 6
    inverted = run(root, tmp_path / "inverted", Movers(inverted=True))
    assert inverted.metrics["J"] == pytest.approx(result.metrics["J"], abs=0.5)
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png"))
    assert files == ["boat.png", *(f"boat/{i:05d}.png" for i in range(5)), "kites.png", *(f"kites/{i:05d}.png" for i in range(8))]
    by_file = run(root, tmp_path / "file")
    assert set(by_file.metrics) == set(MotionSegmentationSettings.METRICS)
    assert describe_data(settings(root)) == {"sequences": 2, "frames": 13}


def test_davis_2016_has_a_list_of_frames_with_their_masks(root):
    listed = root / "ImageSets/2016/val.txt"
    names = listed.read_text().split()
    listed.unlink()
    listed.parent.rmdir()
    own = root / "ImageSets/480p/val.txt"
    own.parent.mkdir()
    lines = [f"/JPEGImages/480p/{name}/{n:05d}.jpg /Annotations/480p/{name}/{n:05d}.png" for name in names for n in range(5)]
    own.write_text("\r\n".join(lines) + "\n")
    assert [video.name for video in list_davis(root, year=2016)] == names
    assert [len(video) for video in list_davis(root, year=2016)] == [5, 8]
    for line, said in (
        ("boat", "line 1: 'boat' is no frame with its mask"),
        (lines[0].replace("boat/00000.png", "kites/00000.png"), "line 1"),
    ):
        own.write_text(line + "\n")
        with pytest.raises(UserError, match=said):
            list_davis(root, year=2016)
    own.write_text(lines[0].replace("boat", "..") + "\n")
    with pytest.raises(UserError, match="no file inside its folder"):
        list_davis(root, year=2016)
    own.unlink()
    with pytest.raises(UserError, match=r"ImageSets/2016/val\.txt does not exist"):
        list_davis(root, year=2016)


def test_sequences_too_short_to_score_are_refused(tmp_path):
    write_sequence(tmp_path / "DAVIS", "boat", frames=2, year=2016, objects=1)
    with pytest.raises(UserError, match="has 2 frames, but the first and the last are not scored"):
        describe_data(settings(tmp_path / "DAVIS"))


def test_real_frames_have_floors():
    root = shared("data/davis")
    result = evaluate_floors(root)
    assert 5 < result["J_whole"] < 12
    assert 30 < result["J_flow"] < 60


def evaluate_floors(root):
    """Both floors of two frames of a real sequence."""
    video = next(v for v in list_davis(root, year=2016, split="val") + list_davis(root, year=2016, split="train") if v.name == "blackswan")
    whole, by_flow = [], []
    for number in (10, 30):
        truth, flow = video.mask(number) > 0, frame_flow(video.image(number), video.image(number + 1))
        whole.append(100 * jaccard(truth, np.ones_like(truth)))
        by_flow.append(100 * jaccard(truth, object_side(moving_pixels(flow))))
    return {"J_whole": np.mean(whole), "J_flow": np.mean(by_flow)}


# -- studies -----------------------------------------------------------------------------------------------------------


def study(*, runs, init="random"):
    made = {"method": "cis", "init": init, "data": ["walk"], "settings": {"preset": "small_video"}}
    return {
        "study": "s",
        "videos": {"walk": {"source": "walk.mp4"}},
        "runs": {
            "start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"},
            "movers": made if init != "random" else {**made, "arch": "vit_nano_patch16"},
            "taken": {"method": "none", "init": "movers"},
            "later": {"method": "mae", "init": "movers", "data": ["walk"], "settings": {"preset": "small_video"}},
            "flat": {"method": "debias", "init": "movers", "settings": {"components": 4}},
            "again": {"method": "cis", "init": "later", "data": ["walk"], "settings": {"preset": "small_video"}},
        },
        "evaluations": {"moves": {"protocol": "motion_segmentation", "runs": runs, "settings": {"root": "d", "dataset": "DAVIS-2016"}}},
    }


@pytest.mark.parametrize("init", ["random", "start"])
def test_a_run_without_a_generator_is_refused_by_name(init):
    parse_study(study(runs=["movers", "taken", "again"], init=init))
    for name in ("start", "later", "flat"):
        with pytest.raises(UserError) as error:
            parse_study(study(runs=[name, "movers"], init=init))
        assert "evaluations.moves: motion_segmentation needs a decoder of masks from image and optical flow (method: cis)" in str(
            error.value
        )
        assert f"which {name} (vit_nano_patch16) has not; to do: name in `runs` those that have it (movers, taken, again)" in str(
            error.value
        )


def test_a_baseline_keeps_the_decoder_and_another_method_leaves_it_out(tmp_path):
    made = parse_study(study(runs=["movers"], init="start"))
    path = write_backbone(tmp_path / "b.safetensors", motion=True)
    for name, kept in (("taken", True), ("flat", False)):
        out = tmp_path / name
        make_backbone(made.run_spec(name, 0), path, [], tmp_path / "state", out, Execution(device="cpu", workers=0))
        network, own = load(out / "backbone.safetensors"), load_file(out / "backbone.safetensors")
        assert ("motion_masks" in network.abilities) == kept
        assert any(key.startswith("motion_decoder.") for key in own) == kept
    card = (tmp_path / "taken/card.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].replace("backbone.safetensors", str(tmp_path / "taken/backbone.safetensors"))
    names = {"images": torch.zeros(1, 3, 224, 224)}
    exec(lines, names)
    torch.testing.assert_close(names["patch_tokens"], load(path).eval().tokens(names["images"]).patches)
    assert "`motion_decoder.*`" in card


def test_a_file_without_a_generator_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="needs a decoder of masks"):
        evaluate(settings(root), write_backbone(tmp_path / "b.safetensors"), Job(out=tmp_path / "out", state=tmp_path / "state"))
    assert torch.is_tensor(Movers().motion_masks(torch.zeros(1, 3, 16, 16), torch.ones(1, 2, 16, 16)))
