"""A method small enough to watch: the loop's tests train it, also as a program of its own under torchrun."""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from densewalk import distributed, loop
from densewalk.backbone import create
from densewalk.checkpoint import State
from densewalk.methods.base import Item, Method, decay_groups
from densewalk.schedules import cosine
from densewalk.settings.base import TrainingSettings
from densewalk.settings.execution import Execution
from densewalk.teacher import make_teacher, update_teacher


class Noise(Dataset):
    """Twelve pictures of noise; a sample depends on its item alone."""

    def __len__(self):
        return 12

    def __getitem__(self, item: Item):
        generator = torch.Generator().manual_seed(item.seed)
        return torch.randn(3, 32, 32, generator=generator), torch.tensor(item.index)


class ToySettings(TrainingSettings):
    """A mean over independent pictures."""

    batch_size: int = 4

    def across_samples(self):
        return None


class Toy(Method):
    """Predict the teacher's CLS token of a noisy picture."""

    def __init__(self, total_steps: int, *, drop_path: float = 0.1, dies_at: int | None = None):
        super().__init__(ToySettings(steps=total_steps), total_steps, 3)
        self.student = create("vit_nano_patch16", seed=0, drop_path=drop_path)
        self.teacher = make_teacher(create("vit_nano_patch16", seed=1))
        self.seen: list[int] = []
        self.dies_at = dies_at

    @staticmethod
    def dataset(settings, sources):
        return Noise()

    def param_groups(self):
        lr, decay = cosine(1e-2, 1e-4, self.total_steps, warmup=2), cosine(0.04, 0.4, self.total_steps)
        return decay_groups("student", list(self.student.named_parameters()), lr, decay)

    def step(self, batch, at, rng):
        images, index = batch
        if at == self.dies_at:
            raise KeyboardInterrupt
        self.seen += index.tolist()
        noise = torch.rand((), generator=rng)
        loss = F.mse_loss(self.student.cls(images + noise), self.teacher.cls(images))
        return loss, {"noise": noise}

    def after_update(self, at):
        update_teacher(self.teacher, self.student, 0.9)

    def export(self):
        return self.teacher


def fit(
    folder: Path, *, steps: int = 8, workers: int = 0, minutes: float = 10.0, parts: int = 1, tensorboard: bool = False, **options
) -> Toy:
    """Train to the end with a batch of four."""
    method = Toy(steps, **options)
    execution = Execution(workers=workers, checkpoint_minutes=minutes, metrics_every=1, log_seconds=1e-3, tensorboard=tensorboard)
    with State(folder, {"data": "noise"}) as state:
        loop.train(method, Noise(), batch_size=4, seed=7, state=state, execution=execution, device=torch.device("cpu"), parts=parts)
    return method


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        method = fit(Path(sys.argv[1]) / str(distributed.rank()), drop_path=0.0, steps=int(sys.argv[2]), minutes=0.0)
        if distributed.rank() == 0:
            torch.save(method.state_dict(), Path(sys.argv[1]) / "final.pt")
