"""Are labels that Time-Tuning forwards through a clip better than the first frame's labels copied? On a video whose masks are known.

    python -m benchmarks.forwarded_labels video.mp4 masks --classes 12 --ignore 11 --backbones random/vit_micro_patch16 backbone.safetensors

Each clip is some frames in a row. The share of each class in each patch of its first frame is forwarded to the last one along the
backbone's features, by the rule and the defaults of `method: timetuning`. Printed: how many patches get the class that has most of their
pixels there, and mIoU over patches; the same for the first frame's classes, copied. A student that learns from labels that are worse than
copied ones is taught that things are somewhere else. Both are compared patch by patch, so that neither has finer contours.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms import functional as TF

import densewalk as dw
from densewalk.data.benchmarks.label_maps import list_video, read_example
from densewalk.data.benchmarks.label_rules import identity_rule
from densewalk.evaluations.common.dense_features import resize
from densewalk.evaluations.incontext.retrieval import patch_labels
from densewalk.evaluations.metrics.segmentation import confusion_matrix, mean_iou, pixel_accuracy
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models.interface import Network
from densewalk.ops.label_propagation import Rule, follow

BATCH = 16


@dataclass(frozen=True)
class Walk:
    """A labelled video: frames in 0..1, and the share of each class in each patch."""

    frames: Float[Tensor, "frames 3 size size"]
    shares: Float[Tensor, "frames patches classes"]

    def clips(self, length: int) -> Int[Tensor, "clips length"]:
        """The frames' numbers of every second possible clip."""
        return torch.stack([torch.arange(start, start + length) for start in range(0, len(self.frames) - length + 1, 2)])


def read_walk(video: str, masks: str, *, size: int, patch: int, classes: int, ignore: int | None) -> Walk:
    """Read the frames that have masks, resized to squares."""
    frames, labels = [], []
    for example in list_video(video, masks, identity_rule(classes, ignore)):
        image, mask = read_example(example)
        x, resized = resize(image, torch.from_numpy(mask.astype(np.int64)), size)
        frames.append(x)
        labels.append(resized)
    return Walk(torch.stack(frames), patch_labels(torch.stack(labels), patch, classes, ignore=ignore))


@torch.inference_mode()
def features(network: Network, frames: Float[Tensor, "frames 3 size size"]) -> Float[Tensor, "frames patches dim"]:
    """The dense features of all frames."""
    x = TF.normalize(frames, list(network.statistics.mean), list(network.statistics.std))
    return torch.cat([network.dense(part).flatten(2).transpose(1, 2) for part in x.split(BATCH)])


def forwarded(patches: Float[Tensor, "frames patches dim"], walk: Walk, rule: Rule, length: int) -> tuple[float, float]:
    """Accuracy and mIoU of the labels that are forwarded to the last frames of clips of `length` frames."""
    clips = walk.clips(length)
    *_, last = follow(patches[clips].unbind(1), walk.shares[clips[:, 0]].transpose(1, 2), rule)
    return scores(last.transpose(1, 2), walk.shares[clips[:, -1]])


def copied(walk: Walk, length: int) -> tuple[float, float]:
    """Accuracy and mIoU of the first frames' labels on the last frames of clips of `length` frames."""
    clips = walk.clips(length)
    return scores(walk.shares[clips[:, 0]], walk.shares[clips[:, -1]])


def scores(found: Float[Tensor, "clips patches classes"], true: Float[Tensor, "clips patches classes"]) -> tuple[float, float]:
    """Accuracy and mIoU in percent of the largest class of each patch, but where the truth has none."""
    classes = true.shape[-1]
    target = torch.where(true.sum(dim=-1) > 0, true.argmax(dim=-1), classes)
    counts = confusion_matrix(target, found.argmax(dim=-1), classes, classes, ignore=classes)
    return 100 * pixel_accuracy(counts), 100 * mean_iou(counts)


def load_network(name: str) -> Network:
    """Random weights (`random/` and an architecture), a public checkpoint or a file."""
    kind, _, arch = name.partition("/")
    return dw.create(arch, seed=0) if kind == "random" else dw.load(name)


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    """One line for the copied labels and one for each backbone."""
    usual, length = TimeTuningSettings().resolved(), arguments.frames
    networks = {name: load_network(name).eval() for name in arguments.backbones}
    given = {name: getattr(arguments, name) for name in ("size", "classes", "ignore")}
    walks = {s: read_walk(arguments.video, arguments.masks, patch=s, **given) for s in {n.stride for n in networks.values()}}
    yield f"{'':44} accuracy  mIoU"
    for stride, walk in walks.items():
        yield f"{f'copied, patches of {stride} px':44} {copied(walk, length)[0]:8.1f} {copied(walk, length)[1]:5.1f}"
    for name, network in networks.items():
        side = arguments.size // network.stride
        rule = Rule((side, side), arguments.radius, usual.top_k, usual.context or 0, usual.propagation_temperature)
        accuracy, miou = forwarded(features(network, walks[network.stride].frames), walks[network.stride], rule, length)
        yield f"{name[-44:]:44} {accuracy:8.1f} {miou:5.1f}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("video")
    found.add_argument("masks", help="folder of PNGs named by frame number")
    found.add_argument("--backbones", nargs="+", required=True, help="files, public names, or random/ and an architecture")
    found.add_argument("--size", type=int, default=160, help="side of the frames in pixels, a multiple of the patch size")
    found.add_argument("--frames", type=int, default=TimeTuningSettings().frames, help="of a clip")
    found.add_argument("--radius", type=int, default=TimeTuningSettings().radius, help="how far a label may move, in patches")
    found.add_argument("--classes", type=int, required=True, help="one more than the largest label")
    found.add_argument("--ignore", type=int, help="label that is not scored")
    return found


if __name__ == "__main__":
    print(*rows(parser().parse_args()), sep="\n")
