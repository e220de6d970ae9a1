"""From stored images to augmented batches: the epoch plan and the pipelines that apply it to pixels."""

from titn.pipelines.batch import Batch
from titn.pipelines.plan import Augmentation, EpochPlan
from titn.pipelines.torch_pipeline import TorchPipeline

__all__ = ["Augmentation", "Batch", "EpochPlan", "TorchPipeline"]
