"""The loop around the step: epochs, evaluation, logs, checkpoints, interruption. One for students and teachers."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text
from torch import Tensor, nn

from titn.data.dataset import Dataset
from titn.errors import Interrupted, UserError
from titn.metrics import classification_metrics
from titn.network import NetworkSpec, load_network
from titn.pipelines import EpochPlan, ImageFiles, Pipeline, TorchPipeline
from titn.pipelines.image_files import Images
from titn.training import checkpoint
from titn.training.callbacks import Callback
from titn.training.captured import CapturedStep
from titn.training.checkpoint import Progress
from titn.training.evaluation import CapturedForward
from titn.training.interrupt import StopRequest
from titn.training.phases import Phases
from titn.training.plans import EpochPlans
from titn.training.run import Run
from titn.training.schedule import Schedule
from titn.training.step import Epoch, TrainStep
from titn.training.targets import TeacherTargets

_BESIDE_NAME = 72
"""Columns of the line of progress besides the name: epoch, loss, accuracy, rate, a bar, steps and the time left."""


class Trainer:
    """Trains on `dataset`, from wherever the run folder stands.

    Args:
        run: where checkpoints and metrics go; locked by the caller.
        step: takes the steps; its module lies on `device`.
        schedule: how many steps of which batch size and rate.
        dataset: training images, and test images to evaluate on.
        plans: what every epoch draws.
        spec: what is stored beside the weights.
        phases: what of the network every epoch trains.
        targets: the teacher's answers; None: no distillation.
        eval_every: epochs from one evaluation to the next; the last epoch is always evaluated. A validation split is
            scored each time, the test images then at the end only.
        patience: evaluations without a better accuracy on the validation split after which training ends; None: never.
        callbacks: told of every step and epoch.
        compiles: whether the first step compiles the network, to be said.
        pipeline: makes the batches of the training images.
        console: where progress goes.
        program: the command that resumes the run, for messages.
    """

    def __init__(
        self,
        run: Run,
        step: TrainStep,
        schedule: Schedule,
        dataset: Dataset,
        plans: EpochPlans,
        phases: Phases,
        *,
        spec: NetworkSpec,
        targets: TeacherTargets | None,
        pipeline: Pipeline,
        console: Console,
        program: str,
        eval_every: int = 1,
        patience: int | None = None,
        callbacks: Sequence[Callback] = (),
        compiles: bool = False,
    ) -> None:
        self.compiles = compiles
        self.callbacks = callbacks
        self.eval_every, self.patience = eval_every, patience
        self.run, self.step, self.schedule, self.dataset = run, step, schedule, dataset
        self.plans, self.phases, self.spec, self.targets = plans, phases, spec, targets
        self.pipeline, self.device, self.console = pipeline, pipeline.device, console
        self.resume_command = f"{program} --resume {shlex.quote(str(run.folder))}"
        self.progress = Progress()
        self.logits: Tensor | None = None
        """Test logits of the last evaluation of the test images."""
        self._waited = 0
        self._began = time.perf_counter()
        self._teacher_seconds = 0.0
        self._checkpoints = checkpoint.Writer(run.checkpoints)
        self._thread = ThreadPoolExecutor(1)
        self._next_plan: Future[tuple[EpochPlan, list[np.ndarray]]] | None = None
        self._forwards: dict[nn.Module, CapturedForward] = {}

    def resume(self) -> None:
        """Take up the newest checkpoint of the run folder, if there is one."""
        newest = checkpoint.newest(self.run.checkpoints)
        if newest is not None:
            self.progress = checkpoint.load(newest, self.step.module, self.step.optimizer, self._averaged)
            if self.step.average is not None:
                self.step.average.updates = self.steps_done
            if self.progress.scaler:
                self.step.scaler.load_state_dict(self.progress.scaler)
            where = f"after epoch {self.progress.epoch}"
            where += f" and {self.progress.step} of {self.schedule.steps} steps" if self.progress.step else ""
            self.console.print(f"resumed {where} of {self.schedule.epochs}", highlight=False)
        self.run.rewind(self.progress.epoch)
        self._waited = sum(line.get("val_top1") is not None for line in self.run.metrics()[self.progress.best_epoch :])

    def fit(self) -> Tensor:
        """Train to the last epoch, or until patience ends; returns its test logits, float32 [N, K] on the CPU.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            UserError: the loss or a test logit is no longer finite.
        """
        self._began = time.perf_counter() - self.progress.wall_seconds
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        bar_below = ProgressBar(*columns, console=self.console, expand=True, transient=True)
        with StopRequest() as stop, self._checkpoints, bar_below as bar:
            if not self.schedule.epochs:
                self._save()
            first = f"{self._name}  first step" + ("  compiles" if self.compiles else "")
            task = bar.add_task(first, total=self.schedule.total_steps, completed=self.steps_done)
            while not self.ended:
                rate = self._train_epoch(
                    stop, lambda text: bar.update(task, completed=self.steps_done, description=text)
                )
                self._end_epoch(rate)
                if stop.received and not self.ended:
                    raise self._interrupted(stop.received, f"after epoch {self.progress.epoch}")
        if self.progress.epoch < self.schedule.epochs:
            best = f"the best epoch is {self.progress.best_epoch}"
            self.console.print(f"stopped after epoch {self.progress.epoch}: {best} (--patience {self.patience})")
        return self._evaluate() if self.logits is None else self.logits

    def score_best(self) -> float | None:
        """Test accuracy of the weights that the validation split chose; None without one.

        Raises:
            UserError: their checkpoint is damaged.
        """
        if not self.dataset.validates or not self.progress.best_epoch:
            return None
        folder = self.run.checkpoints / Progress(self.progress.best_epoch).folder
        if not folder.is_dir():  # the run went on from an earlier checkpoint than those of the epochs since
            return None
        module = load_network(folder / checkpoint.MODEL)[0].to(self.device)
        logits = test_logits(module, self.dataset, self.device)
        return classification_metrics(logits, torch.from_numpy(self.dataset.test_labels))["top1"]

    @property
    def ended(self) -> bool:
        """Whether the last epoch is over, or patience."""
        patient = self.patience is None or self._waited < self.patience
        return self.progress.epoch >= self.schedule.epochs or not patient

    @property
    def _averaged(self) -> nn.Module | None:
        """The module with the averaged weights, if there is one."""
        return None if self.step.average is None else self.step.average.module

    @property
    def _name(self) -> str:
        """The network's, as far as it fits beside counter, rate and time left."""
        room = max(4, self.console.width - _BESIDE_NAME)
        name = self.spec.name.removeprefix("timm:")
        return name if len(name) <= room else f"{name[: room - 1]}~"

    @property
    def steps_done(self) -> int:
        """Completed steps since the start of training."""
        return self.progress.epoch * self.schedule.steps + self.progress.step

    def _plan(self, epoch: int) -> tuple[EpochPlan, list[np.ndarray]]:
        """What `_draw` makes of `epoch`, the one after the last asked for; a thread goes on to draw the next."""
        drawn = self._draw(epoch) if self._next_plan is None else self._next_plan.result()
        follows = epoch + 1 < self.schedule.epochs
        self._next_plan = self._thread.submit(self._draw, epoch + 1) if follows else None
        return drawn

    def _draw(self, epoch: int) -> tuple[EpochPlan, list[np.ndarray]]:
        """The plan of `epoch`, and its rows for the step."""
        plan = self.plans.draw(epoch)
        return plan, self.step.rows(self.pipeline, plan, self.schedule.batch_size)

    def _train_epoch(self, stop: StopRequest, show: Callable[[str], None]) -> float:
        """The rest of the epoch that `progress` stands in; returns its images per second.

        Reading or filling the teacher's answers ahead of the steps is not in that, but in `teacher_seconds`.
        """
        progress, schedule, batch_size = self.progress, self.schedule, self.schedule.batch_size
        plan, rows = self._plan(progress.epoch)
        began = time.perf_counter()
        if self.targets is not None:
            self.targets.begin_epoch(plan, self.pipeline, lambda images: self._answered(images, stop, show))
        self._teacher_seconds = time.perf_counter() - began
        self.phases.enter(progress.epoch, self.step)
        rates = [schedule.rate(progress.epoch * schedule.steps + step) for step in range(schedule.steps)]
        epoch = Epoch(
            self.pipeline, plan, batch_size, rates, self.targets, progress.step, tuple(progress.epoch_sums), rows
        )
        self.step.module.train()
        show_every = 1 if self.device.type == "cpu" else 20
        clock = _Clock(progress.epoch_images)
        for batch, of_step in self.step.epoch(epoch):
            progress.step += 1
            for callback in self.callbacks:
                callback.on_step(self.steps_done, batch, of_step)
            progress.epoch_images += len(batch.ids)
            last = progress.step == schedule.steps
            if progress.step % show_every == 0 or last or stop.received:
                progress.epoch_sums = self.step.epoch_sums.tolist()
                loss, top1, _ = self._means()
                self._checkpoints.check()
                if not math.isfinite(loss):
                    raise UserError(self._not_finite("the loss"))
                rate = clock.lap(progress.epoch_images)
                show(
                    f"{self._name}  epoch {progress.epoch + 1}/{schedule.epochs}  loss {loss:.3f}  "
                    f"top-1 {top1:.1%}  {rate:,.0f}/s"
                )
            if stop.received and not last:
                self._save()
                raise self._interrupted(stop.received, f"in epoch {progress.epoch + 1} after step {progress.step}")
        progress.timed_seconds += clock.seconds
        progress.timed_images += clock.images
        return rate

    def _answered(self, images: int, stop: StopRequest, show: Callable[[str], None]) -> None:
        """The teacher has answered so many images of the epoch ahead of its steps."""
        epoch = self.progress.epoch + 1
        show(f"{self._name}  epoch {epoch}/{self.schedule.epochs}  teacher {images:,}/{self.pipeline.size:,}")
        if stop.received:
            self._save()
            raise self._interrupted(stop.received, f"while the teacher answered epoch {epoch}")

    def _evaluate(self) -> Tensor:
        """Test logits, which are kept in `logits`."""
        self.logits = None
        dataset = self.dataset
        self.logits = self._answers(self.step.module, dataset.test_images, dataset.test_labels)
        return self.logits

    def _answers(self, module: nn.Module, images: Images, labels: np.ndarray) -> Tensor:
        """`evaluation_logits`, all finite; beside a captured step whole batches are captured too."""
        size = evaluation_batch(self.device, self.dataset.image_size)
        if isinstance(self.step, CapturedStep) and self.device.type == "cuda" and module not in self._forwards:
            self._forwards[module] = CapturedForward(module, size)
        forward = self._forwards.get(module)
        return self._finite(evaluation_logits(module, self.dataset, images, labels, self.device, size, forward))

    def _finite(self, logits: Tensor) -> Tensor:
        if not torch.isfinite(logits).all():
            raise UserError(self._not_finite("a logit of the evaluation"))
        return logits

    def _end_epoch(self, rate: float) -> None:
        """Evaluate if it is time to, log the epoch and save a checkpoint."""
        progress = self.progress
        loss, top1, agreement = self._means()
        epoch = progress.epoch + 1
        line: dict[str, Any] = {
            "epoch": epoch,
            "loss": loss,
            "train_top1": top1,
            "teacher_agreement": agreement if self.targets is not None else None,
            **dict.fromkeys(f"{kind}_{score}" for kind in self._scored for score in ("loss", "top1", "top5")),
            "lr": self.schedule.rate(self.steps_done - 1),
            "images_per_second": rate,
            "teacher_seconds": self._teacher_seconds if self.targets is not None else None,
        }
        self.logits, words = None, ""
        if epoch % self.eval_every == 0 or epoch == self.schedule.epochs:
            judge, *others = self._scored
            measured, words = self._score(judge)
            line |= measured
            if line[f"{judge}_top1"] > progress.best_top1:
                progress.best_top1, progress.best_epoch, self._waited = line[f"{judge}_top1"], epoch, 0
            else:
                self._waited += 1
            impatient = self.patience is not None and self._waited >= self.patience
            for kind in others if impatient or epoch == self.schedule.epochs else ():
                measured, said = self._score(kind)
                line, words = line | measured, words + said
        line["seconds"] = time.perf_counter() - self._began
        self.run.log(line)
        progress.epoch, progress.step, progress.epoch_images, progress.epoch_sums = epoch, 0, 0, [0.0, 0.0, 0.0]
        self._save()
        for callback in self.callbacks:
            callback.on_epoch(dict(line))
        left = line["seconds"] / epoch * (self.schedule.epochs - epoch)
        text = (
            f"epoch {epoch}/{self.schedule.epochs}  loss {loss:.4f}  train {top1:.1%}  {words}"
            f"{rate:,.0f} images/s  {_clock_time(left)} left"
        )
        self.console.print(Text(text), soft_wrap=True)

    @property
    def _scored(self) -> tuple[str, ...]:
        """The splits that are scored, the one that chooses the best epoch first."""
        return ("val", "test") if self.dataset.validates else ("test",)

    def _score(self, kind: str) -> tuple[dict[str, float], str]:
        """Scores on a split ("val" or "test") for metrics.jsonl, and words."""
        dataset = self.dataset
        images, labels = getattr(dataset, f"{kind}_images"), getattr(dataset, f"{kind}_labels")
        truth = torch.from_numpy(labels)
        logits = self._evaluate() if kind == "test" else self._answers(self.step.module, images, labels)
        found = classification_metrics(logits, truth)
        line = {
            f"{kind}_loss": F.cross_entropy(logits, truth).item(),
            f"{kind}_top1": found["top1"],
            f"{kind}_top5": found["top5"],
        }
        words = f"{kind} {found['top1']:.2%}  "
        if self._averaged is not None:
            answers = self._answers(self._averaged, images, labels)
            line[f"{kind}_top1_average"] = classification_metrics(answers, truth)["top1"]
            words += f"averaged {line[f'{kind}_top1_average']:.2%}  "
        return line, words

    def _means(self) -> list[float]:
        return [each / max(self.progress.epoch_images, 1) for each in self.progress.epoch_sums]

    def _save(self) -> None:
        """Begin to write a checkpoint of the current state, in the background."""
        self.progress.wall_seconds = time.perf_counter() - self._began
        self.progress.scaler = self.step.scaler.state_dict()
        self._checkpoints.write(
            checkpoint.Snapshot(self.progress, self.step.module, self.spec, self.step.optimizer, self._averaged)
        )

    def _interrupted(self, signal_number: int, where: str) -> Interrupted:
        """What to raise when everything is saved, which is waited for."""
        self._checkpoints.wait()
        message = f"stopped {where}, everything is saved; continue with: {self.resume_command}"
        return Interrupted(signal_number, message)

    def _not_finite(self, what: str) -> str:
        """What to say when training has diverged."""
        self._checkpoints.wait()
        newest = checkpoint.newest(self.run.checkpoints)
        start = f"from its last good checkpoint, {newest.name}" if newest else "from the start"
        earlier = checkpoint.folders(self.run.checkpoints)[:-1]
        or_earlier = f"or from an earlier one, --resume {shlex.quote(str(earlier[0]))}; " if earlier else ""
        return (
            f"{what} is no longer finite in epoch {self.progress.epoch + 1}, step {self.progress.step}; go on {start}, "
            f"at a lower rate: {self.resume_command} --lr {self.schedule.peak / 3:.2g} ({or_earlier}a new run may also "
            "have more --warmup-epochs or --amp off)"
        )


class _Clock:
    """Images per second of an epoch; its first lap, which may compile, counts only where it is the only one."""

    def __init__(self, images: int) -> None:
        self.from_images, self.began, self.laps = images, time.perf_counter(), 0
        self.images, self.seconds = 0, 0.0

    def lap(self, images: int) -> float:
        """The rate so far; `images` is the epoch's count of finished images."""
        now = time.perf_counter()
        self.images, self.seconds = images - self.from_images, now - self.began
        self.laps += 1
        if self.laps == 1:
            self.from_images, self.began = images, now
        return self.images / self.seconds


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def test_logits(module: nn.Module, dataset: Dataset, device: torch.device) -> Tensor:
    """`evaluation_logits` of all test images."""
    return evaluation_logits(module, dataset, dataset.test_images, dataset.test_labels, device)


def evaluation_batch(device: torch.device, image_size: int) -> int:
    """Images at a time: 250, on a GPU 2,000 of 32x32 pixels, fewer of more pixels.

    There launches cost more than arithmetic, and nothing waits before the last batch.
    """
    return min(2000, max(250, 2000 * 32**2 // image_size**2)) if device.type == "cuda" else 250


@torch.no_grad()
def evaluation_logits(
    module: nn.Module,
    dataset: Dataset,
    images: Images,
    labels: np.ndarray,
    device: torch.device,
    batch_size: int | None = None,
    forward: CapturedForward | None = None,
) -> Tensor:
    """Logits in float32 arithmetic without compilation, [N, K] on the CPU.

    Args:
        module: on `device`; it is left in evaluation mode.
        dataset: gives mean and deviation.
        images: uint8 [N, S, S, C], in memory or in files.
        labels: int64 [N].
        device: where to compute.
        batch_size: images at a time; None: `evaluation_batch`.
        forward: computes the module's logits of a batch.
    """
    if batch_size is None:
        batch_size = evaluation_batch(device, dataset.image_size)
    module.eval()
    held = batch_size if isinstance(images, ImageFiles) else len(labels)  # images at a time in memory
    logits: list[Tensor] = []
    with torch.compiler.set_stance("force_eager"):
        for part in (slice(start, start + held) for start in range(0, len(labels), held)):
            pipeline = TorchPipeline(images[part], labels[part], mean=dataset.mean, std=dataset.std, device=device)
            for ids in torch.arange(len(pipeline)).split(batch_size):
                batch = pipeline.plain(ids).images
                logits.append(module(batch).float() if forward is None else forward(batch).clone())
    return torch.cat(logits).cpu()
