import numpy as np
import torch
from benchmarks import forwarded_labels
from PIL import Image
from torch.nn import functional as F

from densewalk.data.video.encode import write_video
from densewalk.ops.label_propagation import Rule


def moving_walk(frames=8, side=6):
    """Three classes as columns, which move to the right by a patch a frame; the last class has no pixels in the truth."""
    columns = (torch.arange(side) - torch.arange(frames)[:, None]) % side // 2  # [frames, side]
    labels = columns[:, None].expand(frames, side, side).flatten(1)
    shares = F.one_hot(labels, 4).float()
    return forwarded_labels.Walk(torch.zeros(frames, 3, 1, 1), shares), labels


def test_features_that_know_the_class_forward_it_where_copies_are_wrong():
    walk, labels = moving_walk()
    knowing = F.one_hot(labels, 5).float()
    rule = Rule((6, 6), None, 5, 7)
    assert forwarded_labels.forwarded(knowing, walk, rule, 4) == (100.0, 100.0)
    clips = walk.clips(4)
    assert clips.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    right = torch.stack([labels[c[0]] == labels[c[-1]] for c in clips]).float().mean().item()
    assert forwarded_labels.copied(walk, 4)[0] == 100 * right < 50


def test_patches_without_a_true_class_are_not_scored():
    true = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.2, 0.8]]])
    found = torch.tensor([[[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]])
    assert forwarded_labels.scores(found, true) == (50.0, 25.0)  # IoU 1/2 and 0


def test_the_program_reads_a_video_and_its_masks(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 96, 3), np.uint8)
    write_video(tmp_path / "walk.mp4", list(frames), 10.0)
    (tmp_path / "masks").mkdir()
    for i in range(6):  # on the left class 0, which becomes 1 in the last two frames; on the right class 2
        mask = np.full((64, 96), 2, np.uint8)
        mask[:, :48] = i > 3
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i:05d}.png")
    words = [
        str(tmp_path / "walk.mp4"),
        str(tmp_path / "masks"),
        "--classes",
        "3",
        "--size",
        "64",
        "--backbones",
        "random/vit_nano_patch16",
    ]
    _, copied, random = forwarded_labels.rows(forwarded_labels.parser().parse_args(words))
    assert copied.split()[-2:] == ["75.0", "50.0"], "a quarter of two clips' patches is wrong; IoU 1/2, 0 and 1"
    assert random.startswith("random/vit_nano_patch16")
