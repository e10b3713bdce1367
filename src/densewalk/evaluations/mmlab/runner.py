"""Training and testing a toolbox's model under this project's rules.

mmengine's loops, schedulers and optimizer wrappers do the work. Ours are: randomness is a function of (seed, step) and
(seed, sample); the state is `densewalk.training.state.State`, which holds tensors and plain values only (mmengine's own checkpoints
pickle objects, and its loader falls back to executing them); signals save and stop; progress and the learning curve look like
those of the pretraining. Several processes share every batch and the test images (processes.py); process 0 alone writes.
"""

import itertools
import warnings
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.files import sweep, temporary_name
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import Progress, log
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.common.periodic_saver import PeriodicSaver
from densewalk.evaluations.mmlab import (
    optim,
    vit,  # noqa: F401  registers DensewalkBackbone
)
from densewalk.evaluations.mmlab.data import ItemStream, SeededDataset, seed_everything
from densewalk.evaluations.mmlab.experiment import PREFIX, Config, Experiment
from densewalk.evaluations.mmlab.processes import share_batch_norm
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.training.learning_curve import LearningCurve, copy_learning_curve, require_finite_loss
from densewalk.training.signals import StopRequest, stop_signals
from densewalk.training.state import State

SAVE_SECONDS = 600.0  # between two checkpoints: at most this much work is lost without a signal
CURVE = "metrics.jsonl"
TABLE = "optimizer.csv"  # learning rate and weight decay of every parameter
CURVE_EVERY = 10  # iterations between two points of the learning curve
_numbers = itertools.count()


def run(experiment: Experiment, job: Job, training: State) -> dict[str, Any]:
    """Train from the newest intact checkpoint in `training`, if there is one, then test; return what the metric computes.

    The learning curve is kept in `job.out`. Of several processes, the first one gets what the metric computes, the others nothing.

    Raises:
        Interrupted: a signal came; the state is saved.
        TrainingError: the loss is not finite.
    """
    sweep(Path(gettempdir()))
    scratch_folder = TemporaryDirectory(prefix=f"{temporary_name('mmengine')}.")
    device, first = distributed.local_device(job.device), distributed.rank() == 0
    kernels = deterministic_kernels(job.deterministic, device)
    with training if first else nullcontext(training) as state, kernels, warnings.catch_warnings(), scratch_folder as scratch:
        # the toolboxes' advice on their own configuration
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mm(engine|cv|seg|det)\.")
        with stop_signals() as stop:
            runner = StatefulRunner(experiment, job, state, stop, scratch)
            runner.train()
        if first:
            copy_learning_curve(state.folder, job.out, tensorboard=job.tensorboard)
        if experiment.test_model is not None:
            runner.model = MODELS.build(experiment.test_model | {"segmentor": runner.model})
        found = runner.test()
    return {name.removeprefix(f"{PREFIX}/"): value for name, value in found.items()}


class StatefulRunner(Runner):
    """mmengine's runner on one chosen device, with this project's state and without mmengine's files, tables and dumps.

    scratch: a folder for the files that mmengine writes in any case.
    """

    _has_loaded: bool

    def __init__(self, experiment: Experiment, job: Job, state: State, stop: StopRequest, scratch: str) -> None:
        self.state, self.device = state, distributed.local_device(job.device)
        saver = PeriodicSaver(state, stop, experiment.iterations, seconds=SAVE_SECONDS, unit="iteration", device=self.device)
        training, test = loaders(experiment, job)
        super().__init__(
            model=ConfigDict(experiment.model),
            work_dir=scratch,
            train_dataloader=training,
            train_cfg={"type": "SharedTrainLoop", "max_iters": experiment.iterations, "parts": job.parts},
            optim_wrapper=precision(self.device) | experiment.optimizer,
            param_scheduler=experiment.schedules,
            test_dataloader=test,
            test_cfg={"type": "TestLoop"},
            test_evaluator=experiment.metric,
            default_hooks=dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
            custom_hooks=[JobHook(state, job), StateHook(saver)],
            default_scope=experiment.scope,
            randomness={"seed": derive_seed(job.seed, "model") % 2**32},
            log_level="WARNING",
            experiment_name=f"densewalk-{next(_numbers)}",  # mmengine keeps global objects by this name
        )

    def train(self) -> nn.Module:
        """Train, then end the loading processes, which mmengine would keep waiting."""
        model = super().train()
        del self.train_loop.dataloader_iterator
        return model

    def wrap_model(self, _config: Config | None, model: nn.Module) -> nn.Module:
        """Put the model on the job's device; mmengine would take a GPU wherever there is one, and average gradients by DDP."""
        return share_batch_norm(model, self.device).to(self.device)

    def load_or_resume(self) -> None:
        """Resume from the state, once everything that has a state is built."""
        if self._has_loaded:
            return
        self._has_loaded = True
        distributed.any_process(False, self.device)  # process 0 has sorted out the folder before the others read it
        content = self.state.newest(map_location=self.device)
        steps = distributed.gathered(torch.tensor(content["step"] if content else 0, device=self.device))
        if (steps != steps[0]).any():
            raise UserError(
                f"the processes find checkpoints of different steps {steps.tolist()} in {self.state.folder}", todo="start again"
            )
        if content is None:
            return
        self.model.load_state_dict(content["model"])
        self.optim_wrapper.load_state_dict(content["optimizer"])
        for scheduler, saved in zip(self.param_schedulers, content["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.train_loop._iter = content["step"]
        log.info("resuming after iteration %d", content["step"])

    def _log_env(self, _env: Config) -> None:
        """Skip it: results carry their provenance, and collecting mmengine's takes seconds."""

    def dump_config(self) -> None:
        """Skip it: results carry their settings."""


def precision(device: torch.device) -> Config:
    """bfloat16 autocast on CUDA, float32 on the CPU."""
    if device.type == "cuda":
        return {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": 1.0}
    return {"type": "OptimWrapper"}


def loaders(experiment: Experiment, job: Job) -> tuple["DataLoader[Any]", "DataLoader[Any]"]:
    """Endless training batches, and the test images one by one."""
    # serialized entries are shared by loading processes instead of copied; in one process they only cost time
    shared = {"serialize_data": job.workers > 0}
    # transforms are looked up in the current scope when a data set is built
    with DefaultScope.overwrite_default_scope(experiment.scope):
        training, test = DATASETS.build(experiment.training | shared), DATASETS.build(experiment.test | shared)
    options = {"collate_fn": pseudo_collate, "num_workers": job.workers}
    shapes = [training.get_data_info(i) for i in range(len(training))] if experiment.group_by_aspect else None
    portrait = [s["width"] < s["height"] for s in shapes] if shapes else None
    stream = ItemStream(len(training), job.seed, batch_size=experiment.batch_size, groups=portrait)
    batches: DataLoader[Any] = DataLoader(SeededDataset(training), stream.share, sampler=stream, drop_last=True, **options)  # type: ignore[arg-type]
    # each image in one process, without padding to equal shares
    own = range(distributed.rank(), len(test), distributed.world_size())
    return batches, DataLoader(test, 1, sampler=own, **options)  # type: ignore[arg-type]


class JobHook(Hook):
    """Seeds every iteration, notes optimizer and learning curve, and reports the progress."""

    # the learning rate that is noted is the one that was used: schedulers come later
    priority = "NORMAL"

    def __init__(self, state: State, job: Job) -> None:
        self.state, self.job = state, job

    def before_train(self, runner: Runner) -> None:
        """Write what the optimizer does to each parameter, and begin or continue the curve."""
        if distributed.rank() == 0:
            optim.write_table(runner.model, runner.optim_wrapper.optimizer, self.job.out / TABLE)
        self.progress = Progress("train", runner.max_iters, done=runner.iter)
        self.curve = LearningCurve(self.state.folder / CURVE, runner.iter, every=CURVE_EVERY, tensorboard=self.job.tensorboard)

    def before_train_iter(self, runner: Runner, **_: Any) -> None:
        """Make drop path, dropout and sampled regions depend on (seed, iteration, process); loading draws from the same generators."""
        others = (distributed.rank(),) if distributed.rank() else ()
        seed_everything(derive_seed(self.job.seed, "step", runner.iter, *others))

    def after_train_iter(self, runner: Runner, outputs: dict[str, torch.Tensor], **_: Any) -> None:
        """Note an iteration; `outputs` are its losses."""
        logs = {name: value for name, value in outputs.items() if name != "loss"}
        self.curve.add(runner.iter, outputs["loss"], logs, runner.optim_wrapper.optimizer)
        self.progress.advance(f"loss {self.curve.latest_loss:.4f}")

    def after_train(self, _runner: Runner) -> None:
        """Close the curve."""
        self.curve.close()
        self.progress.close()

    def before_test(self, runner: Runner) -> None:
        """Begin to count images."""
        self.progress = Progress("test", len(runner.test_dataloader))

    def after_test_iter(self, _runner: Runner, **_: Any) -> None:
        """Count an image."""
        self.progress.advance()

    def after_test(self, _runner: Runner) -> None:
        """Stop counting."""
        self.progress.close()


class StateHook(Hook):
    """Saves the state every ten minutes, after the last iteration, and on a signal, which then ends the training."""

    # after the schedulers, whose state is saved with the rest
    priority = "VERY_LOW"

    def __init__(self, saver: PeriodicSaver) -> None:
        self.saver = saver

    def after_train_iter(self, runner: Runner, outputs: dict[str, torch.Tensor], **_: Any) -> None:
        """Save if it is time.

        Raises:
            Interrupted: there was a signal.
            TrainingError: the loss is not finite.
        """
        done = runner.iter + 1
        if self.saver.is_due(done):
            require_finite_loss(outputs["loss"], runner.iter, self.saver.state.folder / CURVE)
            self.saver.save(done, state_content(runner, done))


def state_content(runner: Runner, done: int) -> dict[str, Any]:
    """Everything that a resume needs: tensors, numbers, strings, and lists and dictionaries of them."""
    return {
        "step": done,
        "model": runner.model.state_dict(),
        "optimizer": runner.optim_wrapper.state_dict(),
        "schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
    }
