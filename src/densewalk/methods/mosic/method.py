"""MoSiC: Optimal-Transport Motion Trajectory for Dense Self-Supervised Learning (Salehi, Venkataramanan et al., ICCV 2025,
https://arxiv.org/abs/2506.08694).

Points of a clip's first frame are followed through the clip. Wherever one can be seen, the teacher says which cluster it belongs to there,
and the student must predict that cluster from the first frame.

    S_tp  = normalize(g_t(F_t[p])) C_t^T                              teacher's scores at point p of frame t       `score_points`
    Q     = SinkhornKnopp(exp(S / epsilon))                           over all frames, points, clips and processes
    loss  = mean over t, p of visible_tp CE(normalize(g(F_0[p])) C^T / tau, argmax Q_tp)                          `track_loss`

F: patch features of the backbone, of which only the last blocks learn; F_t[p]: those of the patch in which the point is; g: projection
head; C: prototypes of unit length; t: the momentum teacher's. The mean is over all points, visible or not, and has the first frame's own
term. The paper's text could not be read here: loss and recipe are the released code's.

Tracks are optical flow from frame to frame with a check by the way back (ops/optical_flow.py), or come from files (data/video/tracks.py).
Each block runs only where it is needed: the frozen ones once for all frames and for both networks, the teacher's last ones on all frames,
the student's on the first. Images of a folder are clips that stand still.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from densewalk.core.hashing import derive_seed
from densewalk.data.images import normalize
from densewalk.data.sources import Source
from densewalk.methods.mosic.clips import TrackDataset, make_views, tracked_videos
from densewalk.methods.mosic.settings import MosicSettings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.heads import Clusterer, assignment_statistics
from densewalk.ops.collapse import MOST, feature_rank
from densewalk.ops.sinkhorn import sinkhorn
from densewalk.training.method import Method, ParamGroup, clusterer_groups
from densewalk.training.schedules import constant, cosine
from densewalk.visualization.prototypes import draw_prototypes, draw_tracks

CLIPS_SHOWN = 4  # in the images of a finished training
Scores = Float[Tensor, "batch frames points protos"]
Labels = Int[Tensor, "batch frames points"]
Visible = Bool[Tensor, "batch frames points"]
Places = Int[Tensor, "batch frames points"]


class Mosic(Method):
    """One training run of MoSiC.

    Raises:
        UserError: the size is not a multiple of the patch size, or more blocks are to learn than there are.
    """

    def __init__(self, settings: MosicSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings = settings.resolved()
        settings.require_network(backbone.arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "mosic"))
            self.student = Clusterer(
                backbone, settings.size, learning=settings.trainable_blocks, widths=settings.head_widths, prototypes=settings.prototypes
            )
        self.teacher = make_teacher(self.student)

    @staticmethod
    def dataset(settings: MosicSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """One clip of every video, segment of a video file, or image.

        Raises:
            UserError: see `tracked_videos`.
        """
        settings = settings.resolved()
        return TrackDataset(tracked_videos(settings, sources), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Prototypes, head and the last blocks."""
        s = self.settings
        lr, slow = (cosine(rate, 0.0, self.total_steps) for rate in (s.lr, s.backbone_lr))
        return clusterer_groups(self.student, lr, slow, constant(s.weight_decay, self.total_steps))

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Flip, colors and blur, the same for all frames of a clip."""
        return make_views(batch, device)

    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of clips [b, t, 3, h, w], normalized, with points [b, p, t, 2] and where they are visible [b, p, t]."""
        visible = batch["visible"].transpose(1, 2)  # [b, t, p]
        places = self.places(batch["points"])  # [b, t, p]
        trunk = self.student.encode_trunk(batch["clip"])  # [b, t, tokens, d], the frozen blocks
        features = self.student.encode(trunk[:, :1])  # [b, 1, n, d], the only one with a gradient
        with torch.no_grad():
            taught = self.teacher.encode(trunk)  # [b, t, n, d]
        with torch.autocast(trunk.device.type, enabled=False):
            scores = score_points(self.student, features, places[:, :1])  # [b, 1, p, prototypes]
            assignment = assign(score_points(self.teacher, taught, places), self.settings)  # [b, t, p, prototypes]
            labels = assignment.argmax(dim=-1)  # [b, t, p]
            loss = track_loss(scores[:, 0], labels, visible, self.settings.student_temperature)
        return loss, self.statistics(features, assignment, labels, visible, scores.detach())

    def places(self, points: Float[Tensor, "batch points frames 2"]) -> Places:
        """The patch in which each point is; of one outside the frame the nearest."""
        rows, columns = self.student.grid
        cell = (points.transpose(1, 2) / self.student.backbone.patch).long().clamp(min=0)
        x, y = cell[..., 0].clamp(max=columns - 1), cell[..., 1].clamp(max=rows - 1)
        return x * columns + y if self.settings.transposed_places else y * columns + x

    @torch.no_grad()
    def statistics(
        self,
        features: Float[Tensor, "batch 1 patches dim"],
        assignment: Scores,
        labels: Labels,
        visible: Visible,
        scores: Float[Tensor, "batch 1 points protos"],
    ) -> dict[str, Tensor]:
        """Of visible points: how sure and how even their labels are, and how many the student gives; and the rank of the features."""
        seen = visible.flatten()
        answers = scores.expand_as(assignment).flatten(0, 2)
        shown = [values.flatten(0, 2)[seen] for values in (assignment, labels)]
        counts = torch.bincount(shown[1], minlength=self.settings.prototypes).float()
        rows = features.flatten(0, 2)
        spread = torch.linspace(0, len(rows) - 1, min(MOST, len(rows)), device=rows.device).long()
        return {
            **assignment_statistics(shown[0], shown[1], answers[seen]),
            "patch_mean_entropy": torch.special.entr(counts / counts.sum().clamp(min=1)).sum(),
            "points_visible": visible.float().mean(),
            "feature_rank": feature_rank(rows[spread].float()),
        }

    def after_update(self, step: int) -> None:
        """Prototypes back to unit length, then the teacher."""
        self.student.normalize_prototypes()
        update_teacher(self.teacher, self.student, self.settings.momentum)
        self.teacher.normalize_prototypes()

    def export(self) -> Backbone:
        """The student."""
        return self.student.backbone

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some clips without augmentation: their tracks, and their patches' prototypes."""
        assert isinstance(data, TrackDataset)
        samples = [data.plain(i * len(data) // CLIPS_SHOWN) for i in range(min(CLIPS_SHOWN, len(data)))]
        clips: UInt8[Tensor, "clips frames 3 size size"] = torch.stack([sample["clip"] for sample in samples])
        views = normalize(clips.to(self.student.prototypes.device).float() / 255)
        features = self.student.encode(self.student.encode_trunk(views))
        maps = (self.student.head(features.float()) @ self.student.prototypes.T).argmax(dim=-1)
        draw_tracks(folder / "tracks.png", clips, *(torch.stack([sample[name] for sample in samples]) for name in ("points", "visible")))
        draw_prototypes(folder / "prototypes.png", clips, maps.unflatten(2, self.student.grid).cpu())


def score_points(network: Clusterer, features: Float[Tensor, "batch frames patches dim"], places: Places) -> Scores:
    """Cosines of the points' projected patches with the prototypes."""
    scores = network.head(features.float()) @ network.prototypes.T
    return scores.gather(2, places[..., None].expand(*places.shape, scores.shape[-1]))


@torch.no_grad()
def assign(scores: Scores, settings: MosicSettings) -> Scores:
    """Each point's share in each prototype; all prototypes get the same share of all points, of all processes."""
    rows = scores.flatten(0, 2)
    shares = sinkhorn(rows, epsilon=settings.sinkhorn_epsilon, iterations=settings.sinkhorn_iterations, across_processes=True)
    return shares.view_as(scores)


def track_loss(scores: Float[Tensor, "batch points protos"], labels: Labels, visible: Visible, temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of the first frame's scores with the labels along each track.

    for b, t, p:
        loss += visible[b, t, p] * -log(softmax(scores[b, p] / temperature)[labels[b, t, p]]) / (b * t * p)
    """
    answers = F.log_softmax(scores / temperature, dim=-1)  # [b, p, prototypes]
    losses = -answers.gather(2, labels.transpose(1, 2)).transpose(1, 2)  # [b, t, p]
    return (losses * visible).mean()


METHOD = Mosic
