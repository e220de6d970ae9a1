"""From stored images to augmented batches: the epoch plan and the pipelines that apply it to pixels."""

from titn.pipelines.augmentation import Augmentation
from titn.pipelines.batch import Batch
from titn.pipelines.dali_pipeline import DaliPipeline
from titn.pipelines.image_files import ImageFiles
from titn.pipelines.make import make_pipeline
from titn.pipelines.pipeline import Pipeline
from titn.pipelines.plan import EpochPlan
from titn.pipelines.torch_pipeline import TorchPipeline
from titn.pipelines.triton_pipeline import TritonPipeline

__all__ = [
    "Augmentation",
    "Batch",
    "DaliPipeline",
    "EpochPlan",
    "ImageFiles",
    "Pipeline",
    "TorchPipeline",
    "TritonPipeline",
    "make_pipeline",
]
