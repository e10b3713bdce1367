"""MoSiC: loss and assignment against plain loops and the release's values, tracks from flow and files, and what every method promises."""

import math

import numpy as np
import pytest
import torch
from benchmarks.reference_values.mosic import mosic_loss
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import default_collate

from densewalk.core.errors import UserError
from densewalk.data.contents import contents_of
from densewalk.data.sources import Source
from densewalk.data.stretches import Video
from densewalk.data.video.tracks import Tracks, TracksHeader, write_tracks
from densewalk.jobs.train import Inputs, named_files
from densewalk.methods.mosic.clips import TrackDataset, Tracked
from densewalk.methods.mosic.method import Mosic, assign, track_loss
from densewalk.methods.mosic.settings import MosicSettings
from densewalk.methods.mosic.tracks import ClipTracks, choose_tracks, crop_tracks
from densewalk.models.catalog import Labels
from densewalk.models.loading import create
from densewalk.ops.cpu import switch
from densewalk.results.records import InputContents
from densewalk.study.config import parse_study
from densewalk.training.sampler import Item
from tests.fixtures.helpers import shared
from tests.fixtures.methods.runs import CPU, Images, require_equal_processes, require_exact_resume
from tests.fixtures.methods.timetuning import one_update
from tests.fixtures.receipts import images_receipt, sequences_receipt, video_receipt
from tests.models.test_work import counted

SMALL = {
    "batch_size": 2,
    "steps": 3,
    "frames": 3,
    "frame_step": 1,
    "size": 48,
    "grid": 3,
    "head_widths": [24, 16],
    "prototypes": 6,
    "lr": 0.01,
}


def settings(**changes):
    return MosicSettings(**{**SMALL, **changes})


def mosic(arch="vit_nano_patch16", **changes):
    return Mosic(settings(**changes), create(arch, seed=1), 3, 2, seed=0)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flow_data(**changes):
    """Videos of smooth noise that goes one pixel to the left in each frame."""
    wide = Images(3, 64, 112)

    def read(number, indices):
        return torch.stack([wide[number][:, :, i : i + 80] for i in indices])

    videos = [Video(lambda indices, n=n: read(n, indices), 0, 9) for n in range(4)]
    return TrackDataset([Tracked(video, np.arange(5)) for video in videos], settings(**changes).resolved())


def batch_of(data, count=2):
    return default_collate([data[Item(i, seed=i)] for i in range(count)])


# -- formulas ----------------------------------------------------------------------------------------------------------


def plain_sinkhorn(scores, epsilon, iterations):
    """In float64, by multiplication."""
    x = np.exp(scores.double().numpy() / epsilon)
    for _ in range(iterations):
        x = x / x.sum(axis=0) / x.shape[1]
        x = x / x.sum(axis=1, keepdims=True) / x.shape[0]
    return x * x.shape[0]


def plain_loss(scores, labels, visible, temperature):
    total = 0.0
    clips, frames, points = labels.shape
    for b in range(clips):
        for t in range(frames):
            for p in range(points):
                row = scores[b, p].double().numpy() / temperature
                total += bool(visible[b, t, p]) * -(row[labels[b, t, p]] - math.log(np.exp(row).sum()))
    return total / (clips * frames * points)


def test_assignment_and_loss_equal_the_plain_loops():
    teacher = F.normalize(noise(2, 3, 4, 5), dim=-1)
    shares = assign(teacher, MosicSettings())
    np.testing.assert_allclose(shares.flatten(0, 2), plain_sinkhorn(teacher.flatten(0, 2), 0.06, 3), atol=1e-6)
    student, visible = F.normalize(noise(2, 4, 5, seed=1), dim=-1), noise(2, 3, 4, seed=2) > 0
    labels = shares.argmax(dim=-1)
    found = track_loss(student, labels, visible, 0.1).item()
    assert found == pytest.approx(plain_loss(student, labels, visible, 0.1), rel=1e-6)
    unweighted = track_loss(student, labels, torch.ones_like(visible), 0.1).item()
    assert unweighted == pytest.approx(
        np.mean([F.cross_entropy(student.flatten(0, 1) * 10, labels[:, t].flatten()).item() for t in range(3)])
    )


def test_the_release_s_values():
    with np.load(shared("parity/mosic_loss.npz")) as values:
        rows = list(mosic_loss(values))
        compared = {f"{row.case}/{row.quantity.split(',')[0].replace('gradient', 'grad')}" for row in rows}
        assert compared == {key for key in values.files if key.rpartition("/")[2] in ("assignment", "loss", "grad")}
    assert [row for row in rows if not row.holds] == []


def test_a_step_is_the_formula():
    """Features of the patch that a point is in: the student's of the first frame, the teacher's of all."""
    method = mosic().eval()
    with torch.no_grad():
        for name, parameter in method.teacher.named_parameters():
            if "embed" not in name and "cls_token" not in name:  # the frozen part is one network's
                parameter.add_(0.02 * noise(*parameter.shape, seed=4))
    method.teacher.normalize_prototypes()
    clips, points = noise(2, 3, 3, 48, 48), torch.rand(2, 5, 3, 2, generator=torch.Generator().manual_seed(1)) * 48
    visible = noise(2, 5, 3, seed=3) > -0.5
    scores = []
    for network in (method.student, method.teacher):
        maps = network.backbone.tokens(clips.flatten(0, 1)).patches.view(2, 3, 3, 3, -1)  # rows, columns
        found = torch.zeros(2, 3, 5, 6)
        for b in range(2):
            for t in range(3):
                for p in range(5):
                    x, y = points[b, p, t].tolist()
                    found[b, t, p] = F.normalize(network.head.mlp(maps[b, t, int(y // 16), int(x // 16)]), dim=0) @ network.prototypes.T
        scores.append(found.detach())
    labels = torch.from_numpy(plain_sinkhorn(scores[1].flatten(0, 2), 0.06, 3).argmax(axis=1)).view(2, 3, 5)
    loss, logs = method.step({"clip": clips, "points": points, "visible": visible}, 0, torch.Generator())
    assert loss.item() == pytest.approx(plain_loss(scores[0][:, 0], labels, visible.transpose(1, 2), 0.1), rel=1e-5)
    seen = visible.transpose(1, 2)
    counts = np.bincount(labels[seen], minlength=6) / int(seen.sum())
    assert logs["patch_mean_entropy"].item() == pytest.approx(-sum(c * math.log(c) for c in counts if c), rel=1e-5)
    assert logs["points_visible"].item() == pytest.approx(visible.float().mean().item())
    agreed = (scores[0][:, :1].argmax(-1) == labels)[seen].float().mean().item()
    assert logs["student_agrees"].item() == pytest.approx(agreed)
    assert 1 <= logs["feature_rank"].item() <= 18


def test_places_of_paper_and_release():
    points = torch.tensor([[[[17.0, 3.0]], [[47.9, 40.0]], [[-5.0, 50.0]]]])  # x, y; the last one is outside
    assert mosic().places(points).tolist() == [[[1, 8, 6]]]
    assert mosic(compat="released").places(points).tolist() == [[[3, 8, 2]]]


def test_no_visible_point_teaches_nothing():
    method = mosic()
    batch = {"clip": noise(2, 3, 3, 48, 48), "points": torch.full((2, 4, 3, 2), 8.0), "visible": torch.zeros(2, 4, 3, dtype=torch.bool)}
    loss, logs = method.step(batch, 0, torch.Generator())
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() == 0 for p in method.student.parameters() if p.grad is not None)
    assert logs["patch_mean_entropy"].item() == 0
    batch["visible"][:, :, 0] = True
    assert method.step(batch, 0, torch.Generator())[0].item() > 0, "the first frame has a term of its own"


def test_an_update_moves_what_learns_and_the_teacher_after_it():
    method = mosic()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    _, gradients, _ = one_update(method, method.prepare(batch_of(flow_data()), CPU))
    assert {n.split(".")[1] for n in gradients} == {"backbone", "head", "prototypes"}
    assert all("blocks" in name for name in gradients if ".backbone." in name)
    after = method.state_dict()
    torch.testing.assert_close(method.student.prototypes.norm(dim=1), torch.ones(6))
    name = "head.mlp.0.weight"
    expected = 0.99 * before[f"teacher.{name}"] + 0.01 * after[f"student.{name}"]
    torch.testing.assert_close(after[f"teacher.{name}"], expected)
    assert not torch.equal(after[f"student.{name}"], before[f"student.{name}"])
    groups = {group.name: group for group in method.param_groups()}
    assert (groups["head/decay"].lr[0], groups["backbone/decay"].lr[0], groups["head/decay"].weight_decay[0]) == (0.01, 1e-5, 0.01)


# -- clips and tracks --------------------------------------------------------------------------------------------------


def test_flow_tracks_move_with_the_clip():
    """The scene goes to the left by a pixel in each frame, to the right where it is flipped; times what the crop enlarges."""
    data = flow_data(frame_step=2, scale=(0.5, 1.0))
    ways = []
    for seed in range(6):
        sample = data[Item(seed % 4, seed=seed)]
        assert sample["clip"].shape == (3, 3, 48, 48)
        moved = sample["points"][:, 2, 0] - sample["points"][:, 0, 0]
        middle = moved[sample["visible"][:, 2]].median().item()
        flipped = sample["distortion"][0].item() == 1
        assert (2 if flipped else -7) < middle < (7 if flipped else -2)
        ways.append(flipped)
        again = data[Item(seed % 4, seed=seed)]
        assert all(torch.equal(sample[name], again[name]) for name in sample)
    assert len(set(ways)) == 2


def write_scene(folder, frames=8, side=8):
    """A black scene through which a red square goes 4 to the right and 2 down in each frame; its middles."""
    folder.mkdir(parents=True)
    middles = [(12 + 4 * t, 10 + 2 * t) for t in range(frames)]
    for t, (x, y) in enumerate(middles):
        image = np.zeros((40, 60, 3), np.uint8)
        image[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2, 0] = 250
        Image.fromarray(image).save(folder / f"{t:05d}.png")
    return np.array(middles, np.float32)


def source_of(folder):
    return Source("scene", sequences_receipt(folder))


def tracks_of(source, points, visible=None, first=(0,), sequence=(0,), **changes):
    points = np.asarray(points, np.float32)
    visible = np.ones(points.shape[:2], bool) if visible is None else visible
    header = {"video": contents_of(source.receipt)[0], "frames": 8, "width": 60, "height": 40, **changes}
    return Tracks(TracksHeader(**header), points, visible, np.array(first), np.array(sequence))


def given(tmp_path, tracks, **changes):
    """Settings with a file of these tracks."""
    write_tracks(tmp_path / "tracks.safetensors", tracks)
    return settings(tracker="files", track_files=[str(tmp_path / "tracks.safetensors")], **changes)


def test_given_tracks_stay_on_their_thing(tmp_path):
    """Whatever the crop and the flip, and in whatever unit the file counts: where the square can be seen, the track is on it."""
    middles = write_scene(tmp_path / "scenes/a")
    source = source_of(tmp_path / "scenes")
    seen = np.ones((1, 8), bool)
    seen[0, 5] = False
    for scale, width in ((1, 60), (2, 120)):
        tracks = tracks_of(source, scale * middles[None], seen, width=width, height=40 * scale)
        data = Mosic.dataset(given(tmp_path, tracks, frame_step=2, size=32, scale=(0.3, 0.9)), [source])
        assert len(data) == 1
        assert data.videos[0].starts.tolist() == [0, 1, 2, 3]
        shown = 0
        for seed in range(30):
            sample = data[Item(0, seed=seed)]
            assert sample["points"].shape == (9, 3, 2)
            clip = sample["clip"].flip(-1) if sample["distortion"][0] == 1 else sample["clip"]
            for t in range(3):
                x, y = sample["points"][0, t].tolist()
                if sample["visible"][0, t]:
                    shown += 1
                    assert clip[t, 0, min(int(y), 31), min(int(x), 31)] > 100
        assert shown > 40


def test_the_tracks_of_a_clip(tmp_path):
    """Only columns at its frames count, and points that are visible in its first frame; folders have tracks of several sequences."""
    for name in "ab":
        write_scene(tmp_path / "scenes" / name, frames=8 if name == "a" else 6)
    source = source_of(tmp_path / "scenes")
    points = np.arange(3 * 3 * 2).reshape(3, 3, 2) % 30
    visible = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1]], bool)
    tracks = tracks_of(source, points, visible, first=(0, 2, 1), sequence=(0, 0, 1), step=2, frames=14)
    data = Mosic.dataset(given(tmp_path, tracks, frames=2, frame_step=2), [source])
    assert [one.starts.tolist() for one in data.videos] == [[0, 2, 4], [1]]
    one = data.videos[0]
    for start, rows in ((0, [0]), (2, [0]), (4, [1])):
        found = one.tracks.clip(one.video, start, 40, 60)
        columns = [(start - (0, 2, 1)[row]) // 2 for row in rows]
        assert found.points.tolist() == [points[row, c : c + 2].tolist() for row, c in zip(rows, columns, strict=True)]
    other = data.videos[1]
    assert other.tracks.clip(other.video, 1, 40, 60).visible.tolist() == [[True, False]]


@pytest.mark.parametrize("lost", [False, True])
def test_hidden_points_have_the_tracker_s_places(tmp_path, lost):
    """Or, where it tells none, the last one: all points share the prototypes, also those that the loss leaves out."""
    write_scene(tmp_path / "scenes/a", frames=8)
    source = source_of(tmp_path / "scenes")
    points = np.stack([np.arange(10, 18), np.arange(20, 28)], axis=1)[None].astype(np.float32)
    visible = np.array([[1, 1, 0, 0, 1, 1, 1, 1]], bool)
    if lost:
        points[0, 2:4] = np.nan
    data = Mosic.dataset(given(tmp_path, tracks_of(source, points, visible, frames=8), frames=4, frame_step=1), [source])
    one = data.videos[0]
    found = one.tracks.clip(one.video, 1, 40, 60)
    assert found.visible.tolist() == [[True, False, False, True]]
    expected = [[11, 21], [11, 21], [11, 21], [14, 24]] if lost else [[11, 21], [12, 22], [13, 23], [14, 24]]
    assert found.points.tolist() == [expected]
    hidden = choose_tracks(ClipTracks(found.points, np.zeros((1, 4), bool)), 3, torch.Generator())
    assert (hidden.points == found.points).all()


def test_tracks_are_chosen_evenly():
    tracks = ClipTracks(np.arange(10, dtype=np.float32).reshape(5, 1, 2), np.array([[1], [0], [1], [1], [1]], bool))
    few, many = (choose_tracks(tracks, count, torch.Generator().manual_seed(0)) for count in (2, 10))
    assert len({tuple(p) for p in few.points[:, 0].tolist()}) == 2
    assert sorted(np.unique(many.points[:, 0, 0], return_counts=True)[1]) == [2, 2, 3, 3]
    assert many.visible.all()
    cut = crop_tracks(ClipTracks(np.float32([[[5, 9]], [[15, 9]]]), np.ones((2, 1), bool)), (4, 0, 10, 10), 20)
    assert cut.points.tolist() == [[[10, 10]], [[30, 10]]]
    assert cut.visible.tolist() == [[True], [False]]
    assert not choose_tracks(ClipTracks(cut.points, ~np.ones((2, 1), bool)), 4, torch.Generator()).visible.any()


def test_images_are_clips_that_stand_still(tmp_path):
    write_scene(tmp_path / "photos", frames=2)
    data = Mosic.dataset(settings(), [Source("photos", images_receipt(tmp_path / "photos"))])
    sample = data[Item(1, seed=3)]
    assert torch.equal(sample["clip"][0], sample["clip"][2])
    assert torch.equal(sample["points"][:, 0], sample["points"][:, 2])
    assert sample["visible"].all()


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path):
    middles = write_scene(tmp_path / "scenes/a")
    write_scene(tmp_path / "other/a", frames=7)
    source, other = source_of(tmp_path / "scenes"), source_of(tmp_path / "other")
    hidden = np.ones((1, 8), bool)
    hidden[0, :6] = False
    whole = middles[None]
    cases = [
        (tracks_of(other, whole), {}, "no tracks of data scene, whose content is .*: .*tracks.safetensors is of "),
        (tracks_of(source, whole, frames=9), {}, "counts 9 frames, the folder scene has 8"),
        (tracks_of(source, whole[:, :4]), {"frame_step": 2}, "tracks of 4 columns are shorter than a clip of 3 frames, 2 columns apart"),
        (tracks_of(source, whole, hidden), {}, "no clip of scene begins with a visible point"),
        (tracks_of(source, whole, first=(1,)), {}, "track 0 ends with frame 8, but the video has frames 0 to 7"),
        (tracks_of(source, whole, sequence=(3,)), {}, "track 0 is of sequence 3, but there are 1"),
        (tracks_of(source, whole[:, :3], step=3), {"frame_step": 2}, "a column for every 3 frames, but a clip takes every 2"),
        (tracks_of(source, whole), {"frames": 9}, "shorter than a clip of 9 frames"),
    ]
    for tracks, changes, message in cases:
        with pytest.raises(UserError, match=message) as error:
            Mosic.dataset(given(tmp_path, tracks, **changes), [source])
        assert "\n" not in str(error.value)
    both = given(tmp_path, tracks_of(source, whole))
    write_tracks(tmp_path / "more.safetensors", tracks_of(other, whole[:, :7], frames=7))
    more = both.model_copy(update={"track_files": [*both.track_files, str(tmp_path / "more.safetensors")]})
    with pytest.raises(UserError, match=r"more.safetensors has tracks of another video than those of data: scene"):
        Mosic.dataset(more, [source])
    twice = both.model_copy(update={"track_files": [*both.track_files, *both.track_files]})
    with pytest.raises(UserError, match="are tracks of one video"):
        Mosic.dataset(twice, [source])
    with pytest.raises(UserError, match="photos is a folder of images, which have no tracks"):
        Mosic.dataset(both, [Source("photos", images_receipt(tmp_path / "scenes"))])


def test_clips_that_are_too_long_are_refused(tmp_path):
    write_scene(tmp_path / "scenes/a")
    with pytest.raises(UserError, match="scene: a clip of 3 frames, every 5, takes 11 frames; the longest video has 8"):
        Mosic.dataset(settings(frame_step=5), [source_of(tmp_path / "scenes")])
    with pytest.raises(UserError, match="size 50 is not a multiple of the patch size 16"):
        mosic(size=50)


# -- settings and files ------------------------------------------------------------------------------------------------


def test_recipes():
    published = MosicSettings(preset="published", track_files=["t"]).resolved()
    assert published.transposed_places
    assert not MosicSettings().resolved().transposed_places
    assert (published.frames, published.frame_step, published.span, published.prototypes, published.epochs) == (12, 6, 67, 100, 8)
    labels = Labels(method="MoSiC", init="DINOv2", arch="ViT-S/14", pretraining_data="YouTube-VOS (post-training)")
    wanted = MosicSettings.published_settings(labels)
    assert (wanted["tracker"], wanted["compat"], "track_files" in wanted) == (("files",), ("released",), False)
    assert MosicSettings.published_settings(Labels(method="TimeT", init="DINO", arch="ViT-S/16", pretraining_data="x")) is None
    assert "tracker files, but track_files names none" in MosicSettings(preset="published").obstacle()
    assert "tracker flow, but track_files names 1" in MosicSettings(track_files=["t"]).obstacle()
    assert MosicSettings(preset="small_video").obstacle() is None
    assert "Sinkhorn" in MosicSettings().obstacle_to_parts(2)


def study_of(path):
    run = {"method": "mosic", "init": "random", "arch": "vit_nano_patch16", "data": ["walk"]}
    run["settings"] = {"preset": "small_video", "tracker": "files", "track_files": [path]}
    return parse_study({"study": "s", "videos": {"walk": {"source": "walk.mp4"}}, "runs": {"tuned": run}})


def test_contents_of_track_files_decide_not_their_names(tmp_path):
    one, two = study_of("a.safetensors"), study_of(str(tmp_path / "b.safetensors"))
    spec = two.run_spec("tuned", 0)
    assert one.run_spec("tuned", 0).hash == spec.hash
    assert two.plan().backbones["tuned/s0"].files == [str(tmp_path / "b.safetensors")]
    with pytest.raises(UserError, match=r"b\.safetensors of run tuned does not exist"):
        named_files(spec)
    (tmp_path / "b.safetensors").write_bytes(b"tracks")
    assert named_files(spec) == [tmp_path / "b.safetensors"]
    inputs = Inputs({}, {}, None, None, InputContents(init=None, data=["d"], files=["f"]), {})
    assert inputs.fingerprints() == {"data 0": "d", "file 0": "f"}


def test_pieces_of_a_video_hold_a_clip():
    from densewalk.data.stretches import segments
    from densewalk.methods.mosic.clips import piece_seconds

    s = settings(frames=12, frame_step=6)
    for end in (67, 100, 150, 200, 251, 400):
        receipt = video_receipt(usable=((0, end),))
        pieces = segments(receipt, piece_seconds(s, Source("walk", receipt)), s.span)
        assert sum(b - a for a, b in pieces) == end, "no frame is lost for a piece that is too short"


# -- what every method promises ----------------------------------------------------------------------------------------


def test_work_is_that_which_torch_counts(monkeypatch):
    monkeypatch.setattr(switch, "_enabled", False)
    method = mosic("vit_micro_patch16")
    batch = {"clip": noise(2, 3, 3, 48, 48), "points": torch.full((2, 9, 3, 2), 8.0), "visible": torch.ones(2, 9, 3, dtype=torch.bool)}
    found = counted(lambda: method.step(batch, 0, torch.Generator())[0].backward())
    assert method.settings.step_work(method.student.backbone.arch).flops == pytest.approx(found, rel=0.1)


def test_resume_is_bitwise_equal(tmp_path):
    require_exact_resume(mosic, flow_data(), tmp_path, batch_size=2)


def test_processes_equal_one_batch(tmp_path):
    require_equal_processes(mosic, flow_data(), tmp_path, 2)


def test_pictures_show_tracks_and_prototypes(tmp_path):
    method, data = mosic().eval(), flow_data()
    for name in ("once", "again"):
        with torch.no_grad():
            method.pictures(data, tmp_path / name)
    files = {path.stem: path for path in (tmp_path / "once").iterdir()}
    assert files.keys() == MosicSettings.PICTURES.keys()
    for path in files.values():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        drawn = np.asarray(Image.open(path))
        assert drawn.shape == (8 * 48, 3 * 48, 3)
        frames = data.plain(0)["clip"].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(drawn[:48, :48], frames[0])
        assert not np.array_equal(drawn[48:96, :48], frames[0])
    assert method.export() is method.student.backbone
