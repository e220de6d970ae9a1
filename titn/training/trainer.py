"""The training loop as named steps: one trainer for students and teachers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from titn.config import RunConfig, TrainConfig
from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.kernels import distillation_loss
from titn.metrics import classification_metrics
from titn.network import NetworkSpec
from titn.pipelines import Augmentation, Batch, EpochPlan, TorchPipeline
from titn.training import checkpoint
from titn.training.checkpoint import Position
from titn.training.interrupt import Interrupted, StopRequest
from titn.training.meters import Tally, Throughput
from titn.training.optimizers import build_optimizer, learning_rate
from titn.training.run import Run
from titn.training.switches import Parts
from titn.training.targets import TeacherTargets


class Trainer:
    """Trains `module` on `dataset` as `config` says, from wherever the run folder stands.

    `targets` gives the teacher's answers (None: no distillation).
    """

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        dataset: Dataset,
        run: Run,
        spec: NetworkSpec,
        module: nn.Module,
        targets: TeacherTargets | None,
        console: Console,
    ) -> None:
        assert config.batch_size is not None
        self.batch_size = config.batch_size
        self.config, self.parts, self.dataset, self.run = config, parts, dataset, run
        self.spec, self.targets, self.console = spec, targets, console
        self.device = parts.device
        self.module = module.to(self.device)
        self.optimizer = build_optimizer(config, self.module)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=parts.amp is torch.float16)
        self.pipeline = TorchPipeline(
            dataset.train_images, dataset.train_labels, mean=dataset.mean, std=dataset.std, device=self.device
        )
        self.epochs = config.epochs
        self.steps = self.pipeline.steps(self.batch_size)
        self.position = Position(0)
        self.progress: dict[str, Any] = {
            "best_top1": -1.0, "best_epoch": 0, "wall_seconds": 0.0, "timed_seconds": 0.0, "timed_images": 0,
            "tally": None, "scaler": None,
        }  # fmt: skip
        if parts.compile:
            compile_network(self.module, parts.cuda_graph)

    def resume(self) -> None:
        """Take up the newest checkpoint of the run folder, if there is one."""
        newest = checkpoint.newest(self.run.checkpoints)
        if newest is not None:
            self.position, self.progress = checkpoint.load(newest, self.module, self.optimizer)
            if self.progress["scaler"]:
                self.scaler.load_state_dict(self.progress["scaler"])
        self.run.rewind(self.position.epoch)

    def fit(self) -> Tensor:
        """Train to the last epoch; returns the test logits of the last epoch, float32 [N, K] on the CPU.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            UserError: the loss is no longer finite.
        """
        self.began = time.perf_counter() - self.progress["wall_seconds"]
        logits = None
        columns = (
            TextColumn(self.spec.name), BarColumn(), MofNCompleteColumn(), TextColumn("steps  {task.description}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with StopRequest() as stop, Progress(*columns, console=self.console) as bar:
            task = bar.add_task("", total=self.epochs * self.steps, completed=self.global_step)
            while self.position.epoch < self.epochs:
                tally, rate = self.train_epoch(
                    stop, lambda text: bar.update(task, completed=self.global_step, description=text)
                )
                logits = self.evaluate()
                self.end_epoch(tally, rate, logits)
                if stop.received and self.position.epoch < self.epochs:
                    raise Interrupted(stop.received, f"after epoch {self.position.epoch}")
        return self.evaluate() if logits is None else logits

    @property
    def global_step(self) -> int:
        """Steps completed since the start of training."""
        return self.position.epoch * self.steps + self.position.step

    def train_epoch(self, stop: StopRequest, show: Callable[[str], None]) -> tuple[Tally, float]:
        """The rest of the epoch that `position` stands in; returns its sums and its images per second."""
        epoch = self.position.epoch
        plan = EpochPlan.draw(
            augmentation_of(self.config, self.batch_size),
            size=len(self.dataset.train_labels),
            image_size=self.dataset.image_size,
            seed=self.config.seed,
            epoch=epoch,
        )
        tally = Tally.start(self.device, self.progress["tally"])
        self.progress["tally"] = None
        self.module.train()
        show_every = 1 if self.device.type == "cpu" else 20
        throughput, rate = Throughput(tally.images), 0.0
        for batch in self.pipeline.epoch(plan, self.batch_size, first_step=self.position.step):
            self.train_step(batch, tally)
            self.position = Position(epoch, self.position.step + 1)
            last = self.position.step == self.steps
            if self.position.step % show_every == 0 or last or stop.received:
                loss, top1, _ = tally.means()
                if not math.isfinite(loss):
                    raise UserError(self.not_finite())
                rate = throughput.lap(tally.images)
                show(f"epoch {epoch + 1}/{self.epochs}  {rate:,.0f} images/s  loss {loss:.3f}  top-1 {top1:.1%}")
            if stop.received and not last:
                self.progress["tally"] = {"images": tally.images, "sums": tally.sums.tolist()}
                self.save()
                raise Interrupted(stop.received, f"in epoch {epoch + 1} after step {self.position.step}")
        self.progress["timed_seconds"] += throughput.seconds
        self.progress["timed_images"] += throughput.images
        return tally, rate

    def train_step(self, batch: Batch, tally: Tally) -> None:
        """Forward, loss, backward, optimiser; adds the batch to `tally`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.global_step, self.steps)
        targets = None if self.targets is None else self.targets(batch)
        if self.parts.cuda_graph:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device.type, self.parts.amp, enabled=self.parts.amp is not None):
            output = self.module(batch.images)
        class_logits, distillation_logits = output if isinstance(output, tuple) else (output, None)
        loss = self.loss(batch, class_logits, distillation_logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            correct = (class_logits.argmax(1) == batch.labels_a).sum()
            agreed = torch.zeros_like(correct)
            if targets is not None and distillation_logits is not None:
                decision = targets if targets.ndim == 1 else targets.argmax(1)
                agreed = (distillation_logits.argmax(1) == decision).sum()
            tally.sums += torch.stack([loss.detach().double() * len(batch.ids), correct.double(), agreed.double()])
            tally.images += len(batch.ids)

    def loss(
        self, batch: Batch, class_logits: Tensor, distillation_logits: Tensor | None, targets: Tensor | None
    ) -> Tensor:
        """The paper's loss, a scalar; without targets plain cross-entropy under CutMix."""
        config = self.config
        distilled: dict[str, Any] = {"kind": "none"}
        if targets is not None and isinstance(config, TrainConfig):
            distilled = {
                "kind": config.distillation, "weight": config.distillation_weight, "temperature": config.temperature,
            }  # fmt: skip
        return distillation_loss(
            class_logits,
            distillation_logits,
            batch.labels_a,
            batch.labels_b,
            batch.lam,
            targets,
            label_smoothing=config.label_smoothing,
            backend=self.parts.kernels,
            **distilled,
        )

    def evaluate(self) -> Tensor:
        """Test logits of the current weights.

        Raises:
            UserError: one of them is not finite.
        """
        logits = test_logits(self.module, self.dataset, self.device)
        if not torch.isfinite(logits).all():
            raise UserError(self.not_finite("a test logit"))
        return logits

    def end_epoch(self, tally: Tally, rate: float, logits: Tensor) -> None:
        """Log the epoch and save a checkpoint."""
        labels = torch.from_numpy(self.dataset.test_labels)
        test = classification_metrics(logits, labels)
        loss, top1, agreement = tally.means()
        epoch = self.position.epoch + 1
        self.run.log(
            {
                "epoch": epoch,
                "loss": loss,
                "train_top1": top1,
                "teacher_agreement": agreement if self.targets is not None else None,
                "test_loss": F.cross_entropy(logits, labels).item(),
                "test_top1": test["top1"],
                "test_top5": test["top5"],
                "lr": self.optimizer.param_groups[0]["lr"],
                "images_per_second": rate,
                "seconds": time.perf_counter() - self.began,
            }
        )
        self.position = Position(epoch)
        best = test["top1"] > self.progress["best_top1"]
        if best:
            self.progress |= {"best_top1": test["top1"], "best_epoch": epoch}
        self.save(best=best)
        self.console.print(
            f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  train top-1 {top1:.1%}  "
            f"test top-1 {test['top1']:.2%}  {rate:,.0f} images/s",
            highlight=False,
        )

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint of the current position."""
        self.progress["wall_seconds"] = time.perf_counter() - self.began
        self.progress["scaler"] = self.scaler.state_dict() or None
        checkpoint.save(
            self.run.checkpoints, self.position, self.module, self.spec, self.optimizer, self.progress, best=best
        )

    def not_finite(self, what: str = "the loss") -> str:
        """What to say when training has diverged."""
        newest = checkpoint.newest(self.run.checkpoints)
        kept = f"the last good checkpoint is {newest}" if newest else "no checkpoint was written yet"
        return (
            f"{what} is no longer finite in epoch {self.position.epoch + 1}, step {self.position.step}; {kept}: "
            "try a lower --lr, --warmup-epochs or --amp off"
        )


def augmentation_of(config: RunConfig, batch_size: int) -> Augmentation:
    """The augmentation that the configuration describes; the paper's CutMix needs to know the batch."""
    return Augmentation(
        crop_padding=config.crop_padding,
        flip=config.flip,
        policy=config.augmentation,
        mix=config.mix,
        mix_alpha=config.mix_alpha,
        mix_batch=batch_size,
    )


def compile_network(module: nn.Module, cuda_graph: bool) -> None:
    """Compile in place, so that the state dict keeps its names: equal blocks share one compilation."""
    blocks = getattr(module, "blocks", None)
    if cuda_graph or blocks is None:
        module.compile(mode="reduce-overhead" if cuda_graph else None)
    else:
        for block in blocks:
            block.compile()


@torch.no_grad()
def test_logits(module: nn.Module, dataset: Dataset, device: torch.device, batch_size: int = 250) -> Tensor:
    """Logits of all test images in float32 arithmetic without compilation, [N, K] on the CPU."""
    pipeline = TorchPipeline(
        dataset.test_images, dataset.test_labels, mean=dataset.mean, std=dataset.std, device=device
    )
    module.eval()
    with torch.compiler.set_stance("force_eager"):
        ids = torch.arange(len(dataset.test_labels))
        return torch.cat([module(pipeline.plain(chunk).images).float().cpu() for chunk in ids.split(batch_size)])
