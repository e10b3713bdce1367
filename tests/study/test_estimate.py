"""What a study costs before anything is queued."""

import copy
import hashlib
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.data.amounts import Amount
from densewalk.data.receipts import write_receipt
from densewalk.data.settings import VideoSettings
from densewalk.data.video.stated import stated_length
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.methods.dino.settings import DinoSettings
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models.architecture import architecture_named
from densewalk.models.work import parameters, vit
from densewalk.study.amounts import Amounts, Assumed, require_amounts
from densewalk.study.config import parse_study
from densewalk.study.estimate import estimate
from densewalk.study.gpus import GPUS, Gpu, Share, gigabytes, smallest, ways_to_fit
from densewalk.study.registry import evaluations
from tests.fixtures.receipts import images_receipt, video_receipt
from tests.fixtures.studies import REPOSITORY, TINY, write_study

SMALL = {"method": "dino", "init": "random", "arch": "vit_small_patch16", "data": ["walk"]}


def cost(*, precision="float32", execution=None, gpu="a100", utilization=None, **settings):
    """The only job of a study with one training that has GPU-hours."""
    study = copy.deepcopy(TINY)
    study["runs"] = {"dino": {**SMALL, "settings": {"steps": 1000, "batch_size": 64, **settings}}}
    study["evaluations"] = {}
    study["execution"] = {"precision": precision, **(execution or {})}
    found = estimate(parse_study(study), GPUS[gpu], Path("results"), Assumed(utilization=utilization))
    (job,) = [job for job in found.jobs if job.rule == "train_dino"]
    return job


def test_hours_follow_steps_precision_gpu_and_utilization():
    hours = cost().gpu_hours
    assert hours == pytest.approx(cost().flops / (19.5e12 * 0.6) / 3600)
    assert cost(steps=3000).gpu_hours == pytest.approx(3 * hours)
    assert cost(precision="bfloat16", utilization=0.5).gpu_hours == pytest.approx(cost().flops / (312e12 * 0.5) / 3600)
    assert cost(gpu="h100").gpu_hours == pytest.approx(hours * 19.5 / 67)


def test_memory_falls_with_parts_and_recomputed_blocks():
    whole = cost().gigabytes
    parts = cost(execution={"accumulate": 4}).gigabytes
    recomputed = cost(execution={"gradient_checkpointing": True}).gigabytes
    assert recomputed < parts < whole
    assert cost(precision="bfloat16").gigabytes < whole


def test_shards_of_a_large_network_are_part_of_the_plan():
    """Of two processes each holds half of 23 blocks of student and teacher, and one block of each whole while it is computed."""
    arch, settings = architecture_named("vit_large_patch16"), DinoSettings(steps=1, batch_size=8)
    work = settings.step_work(arch)
    whole, held = (gigabytes(work, "bfloat16", Share(2, sharded=sharded), arch) for sharded in (False, True))
    block = parameters(arch, 1)
    assert whole - held == pytest.approx((16 + 4) * (23 / 2 - 1) * block / 1e9)
    ways = dict(
        ways_to_fit(lambda share: gigabytes(work, "bfloat16", share, arch), Share(2, sharded=False), Gpu(1, 1, held / 0.9), lambda *_: "")
    )
    assert ways["shard"] == pytest.approx(held)
    assert "shard" not in dict(ways_to_fit(lambda share: 1.0, Share(2), GPUS["a100"], lambda *_: ""))


def test_epochs_are_counted_by_the_length_that_is_assumed():
    assert cost(steps=None, epochs=2, warmup_epochs=0, batch_size=64).steps == 2 * (90 * 60 * 30 // 64)


@pytest.mark.parametrize(
    ("settings", "amount", "samples"),
    [
        (DoraSettings(frames=8, spacing_seconds=1.0), Amount("video", 9000, 30.0, 2), 9000 - 2 * 7 * 30),
        (TimeTuningSettings(segment_seconds=5), Amount("video", 9000, 30.0), 60),
        (TimeTuningSettings(), Amount("sequences", 94_588, 6.0, 3471), 3471),
        (TimeTuningSettings(), Amount("images", 500), 500),
    ],
)
def test_a_method_says_what_a_sample_is(settings, amount, samples):
    assert settings.samples(amount) == samples


EXAMPLES = {
    "davis": {"root": "d", "dataset": "DAVIS-2017"},
    "motion_segmentation": {"root": "d", "dataset": "DAVIS-2016"},
    "tracking": {"root": "d", "dataset": "GOT-10k"},
    "video_segmentation": {"root": "d", "dataset": "DAVIS-2017", "layout": "davis"},
    "incontext": {"root": "d", "dataset": "PascalVOC", "layout": "voc"},
    "knn": {"root": "d", "dataset": "ImageNet-1k"},
    "position": {"root": "d/coco", "images": "train2017", "dataset": "COCO"},
    "linear": {"root": "d", "dataset": "ImageNet-1k"},
    "linear_segmentation": {"root": "d", "dataset": "PascalVOC", "layout": "voc"},
    "overcluster": {"root": "d", "dataset": "PascalVOC", "layout": "voc"},
    "unsupervised_segmentation": {"root": "d", "dataset": "PascalVOC", "layout": "voc"},
    "stego": {"root": "d", "dataset": "PascalVOC", "layout": "voc"},
    "discovery": {"root": "d", "dataset": "VOC12", "layout": "voc"},
    "ade20k_linear": {"root": "d", "dataset": "ADE20K"},
    "ade20k_upernet": {"root": "d", "dataset": "ADE20K"},
    "segmentation_linear": {"root": "d", "dataset": "PascalVOC", "layout": "voc"},
    "segmentation_upernet": {"root": "d", "dataset": "PascalVOC", "layout": "voc"},
    "coco": {"root": "d", "dataset": "COCO"},
    "depth": {"root": "d", "dataset": "NYUv2"},
    "correspondence": {"root": "d", "dataset": "SPair-71k"},
    "geometric_correspondence": {"root": "d", "dataset": "NAVI"},
    "retrieval": {"root": "d", "dataset": "ROxford5k", "layout": "roxford5k"},
    "youtube_vos": {"root": "d", "dataset": "YouTube-VOS", "split": "train"},
    "clip_propagation": {"root": "d", "dataset": "DAVIS-2017", "layout": "davis"},
}
SILENT = {"mose"}  # the number of its frames is not published


@pytest.mark.parametrize("protocol", sorted(evaluations().keys() - SILENT))
def test_each_evaluation_tells_its_work_on_public_data(protocol):
    """More than a hundred images, each at least once; an evaluation of a larger network is more work."""
    small, base = (architecture_named(f"vit_{size}_patch16") for size in ("small", "base"))
    settings = evaluations()[protocol].model_validate(EXAMPLES[protocol])
    assert 100 * vit(small, 112) < settings.work(small).flops < settings.work(base).flops


def test_an_evaluation_that_tells_nothing_is_named():
    assert EvaluationSettings(root="d", dataset="d").work(architecture_named("vit_small_patch16")) is None
    found = estimate(parse_study(TINY), GPUS["a100"], Path("results"), Assumed())
    assert any("evaluation davis: its work is not known" in note for note in found.notes) is False
    assert any("evaluation incontext: its work is not known" in note for note in found.notes)


@pytest.mark.parametrize("name", ["vit_small_patch16_224.dino", "vit_base_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"])
def test_the_shape_of_a_network_of_timms_is_in_its_name(name):
    study = {**TINY, "runs": {"theirs": {"method": "none", "init": f"timm/{name}"}}, "evaluations": {"davis": TINY["evaluations"]["davis"]}}
    found = estimate(parse_study(study), GPUS["a100"], Path("results"), Assumed())
    assert [job.flops is not None for job in found.jobs if job.rule == "evaluate_davis"] == [True]


def test_the_command_needs_no_torch(tmp_path):
    write_study(tmp_path, TINY)
    program = "import sys; from densewalk.__main__ import main; main(['plan', 'config.yaml']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in ("train_dora", "evaluate_davis", "GPU-hours", "training copies of videos", "video walk: not prepared yet"):
        assert line in done.stdout


def test_an_unknown_gpu_is_one_line(capsys, caplog):
    assert main(["plan", str(REPOSITORY / "config.yaml"), "--gpu", "gtx"]) == 2
    assert "--gpu gtx is not known; allowed: v100" in caplog.text + capsys.readouterr().err


def evaluated(gpu, *, head="cascade", protocol="coco", **execution):
    """The job of an evaluation that trains, of a study with one baseline."""
    study = copy.deepcopy(TINY)
    study["runs"] = {"start": {"method": "none", "init": "random", "arch": "vit_small_patch16"}}
    data = {"coco": {"root": "d", "dataset": "COCO", "head": head}, "ade20k_upernet": {"root": "d", "dataset": "ADE20K"}}[protocol]
    study["evaluations"] = {"heads": {"protocol": protocol, "settings": data}}
    study["execution"] = execution
    found = estimate(parse_study(study), GPUS[gpu], Path("results"), Assumed())
    (job,) = [job for job in found.jobs if job.rule == f"evaluate_{protocol}"]
    return job


def test_a_plan_says_what_helps_where_a_detector_does_not_fit():
    """Published: 32 images of up to 800 x 1333 px; 65 to 95 GB with what is lost between blocks of memory."""
    assert 50 < evaluated("a100").gigabytes < 72
    assert evaluated("a100").ways == ()
    ways = dict(evaluated("a6000").ways)
    assert ways.keys() == {"gradient_checkpointing", "gpu=2"}, "parts would change batch normalization"
    assert all(memory < 0.9 * 48 for memory in ways.values())
    assert dict(evaluated("rtx3090").ways).keys() == {"gpu=4"}
    plain = dict(evaluated("rtx3090", head="maskrcnn").ways)
    assert plain.keys() == {"in 2 parts", "gpu=2"}
    assert evaluated("rtx3090", head="maskrcnn", accumulate_evaluations={"heads": 2}).gigabytes == pytest.approx(plain["in 2 parts"])


def test_the_smallest_gpu_that_has_room_is_named():
    assert [smallest(memory) for memory in (21.0, 22.0, 60.0, 130.0, 500.0)] == [24, 32, 80, 192, None]


def test_parts_of_an_evaluation_are_refused_where_they_change_it():
    with pytest.raises(
        UserError, match=r"execution.accumulate_evaluations: evaluation 'heads': batch normalization looks across the batch"
    ):
        evaluated("a100", accumulate_evaluations={"heads": 2})
    with pytest.raises(UserError, match=r"execution.accumulate_evaluations: no such evaluation: head; allowed: heads"):
        evaluated("a100", head="maskrcnn", accumulate_evaluations={"head": 2})


def with_warmup(folder, **settings):
    """A study on a folder of 8 images, with one training of 4 images a step: 2 steps an epoch."""
    (folder / "pets").mkdir(exist_ok=True)
    for number in range(8):
        (folder / "pets" / f"{number}.png").touch()
    run = {"method": "dino", "init": "random", "arch": "vit_nano_patch16", "data": ["pets"], "settings": {"batch_size": 4, **settings}}
    return {"study": "Warm", "images": {"pets": {"source": "pets"}}, "runs": {"dino": run}, "evaluations": {}}


def test_a_warm_up_that_is_longer_than_the_training_is_refused_before_the_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = r"runs\.dino\.settings: warmup_epochs 10 are 20 steps, the training has 5; allowed: at most 2\.5; to do: lower warmup_epochs"
    with pytest.raises(UserError, match=found):
        require_amounts(parse_study(with_warmup(tmp_path, steps=5, warmup_epochs=10)), Path("results"), stated_length)
    require_amounts(parse_study(with_warmup(tmp_path, steps=5, warmup_epochs=2.5)), Path("results"), stated_length)
    study = with_warmup(tmp_path, steps=5, warmup_epochs=10)
    study["images"]["pets"]["source"] = "not_there_yet"
    require_amounts(parse_study(study), Path("results"), stated_length)


def test_data_that_hold_less_than_a_batch_are_refused_before_the_jobs(tmp_path, monkeypatch):
    """Of two frames DoRA makes no clip; of a folder, a batch may be twice what is counted, which is not exact."""
    monkeypatch.chdir(tmp_path)
    study = with_warmup(tmp_path, epochs=1, warmup_epochs=0, batch_size=17)
    require_amounts(parse_study(study), Path("results"), stated_length)  # a folder is not listed for that
    write_receipt("results/data/pets.json", images_receipt("pets", name="pets", files=8))
    found = r"runs\.dino\.settings: batch_size 17 is larger than the data set \(about 8 samples in pets\); to do: lower batch_size"
    with pytest.raises(UserError, match=found):
        require_amounts(parse_study(study), Path("results"), stated_length)
    study["runs"]["dino"]["settings"]["batch_size"] = 16
    require_amounts(parse_study(study), Path("results"), stated_length)
    study["runs"]["dino"] |= {"method": "dora", "data": ["walk"], "settings": {"batch_size": 1, "steps": 1, "warmup_epochs": 0}}
    study["videos"] = {"walk": {"source": "walk.mp4"}}
    require_amounts(parse_study(study), Path("results"), lambda _: (60.0, 10.0))
    require_amounts(parse_study(study), Path("results"), lambda _: None)
    with pytest.raises(UserError, match=r"batch_size 1 is larger than the data set \(about 0 samples in walk\)"):
        require_amounts(parse_study(study), Path("results"), lambda _: (0.2, 10.0))


def test_a_receipt_of_another_preparation_refuses_no_warm_up(tmp_path, monkeypatch):
    """The study was prepared with a larger folder, and with a longer part of the video: what its warm-ups were then is nothing now."""
    monkeypatch.chdir(tmp_path)
    study = with_warmup(tmp_path, steps=5, warmup_epochs=2.5)  # 2 steps an epoch: just short enough
    receipt = images_receipt("more_pets", name="pets", files=80)
    write_receipt("results/data/pets.json", receipt)
    require_amounts(parse_study(study), Path("results"), stated_length)
    write_receipt("results/data/pets.json", receipt.model_copy(update={"path": "pets"}))  # of this folder: counted
    with pytest.raises(UserError, match=r"warmup_epochs 2.5 are 50 steps, the training has 5"):
        require_amounts(parse_study(study), Path("results"), stated_length)

    video = {"source": "walk.mp4", "usable_seconds": [[0, 4]]}  # 40 frames: 10 steps an epoch
    study = {**study, "images": {}, "videos": {"walk": video}}
    study["runs"]["dino"]["data"], study["runs"]["dino"]["settings"]["warmup_epochs"] = ["walk"], 0.5
    Path("walk.mp4").write_bytes(b"a video")
    settings = VideoSettings.model_validate({**video, "usable_seconds": [[0, 40]]})
    sha256 = hashlib.sha256(b"a video").hexdigest()
    write_receipt("results/data/walk.json", video_receipt(source="walk.mp4", source_sha256=sha256, settings=settings))
    require_amounts(parse_study(study), Path("results"), lambda _: (40.0, 10.0))
    again = VideoSettings.model_validate(video)
    write_receipt("results/data/walk.json", video_receipt(source="elsewhere.mp4", source_sha256=sha256, settings=again))
    with pytest.raises(UserError, match=r"warmup_epochs 0.5 are 50 steps"):  # the receipt's 400 frames, though the copy is gone
        require_amounts(parse_study(study), Path("results"), lambda _: (40.0, 10.0))
    Path("walk.mp4").write_bytes(b"another one")
    require_amounts(parse_study(study), Path("results"), lambda _: (40.0, 10.0))


def test_what_lies_on_the_disk_is_counted_and_not_assumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with av.open("walk.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    study = with_warmup(tmp_path, steps=5, warmup_epochs=0)
    study["videos"] = {"walk": {"source": "walk.mp4"}, "gone": {"source": "gone.mp4"}}
    notes = []
    amounts = Amounts(parse_study(study), Path("results"), Assumed(stated_length=stated_length), notes.append)
    assert amounts.of("pets") == [Amount("images", 8)]
    assert amounts.of("walk") == [Amount("video", 20, 10.0)]
    assert amounts.of("gone") == [Amount("video", 90 * 60 * 30, 30.0)]
    assert amounts.guessed == {"gone"}
    assert [note.partition(", ")[2].split()[0] for note in notes] == ["its", "assumed"]
