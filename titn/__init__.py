"""Train a distilled Transformer-in-Transformer on small images."""

from titn.accelerate import Acceleration, accelerate, restore
from titn.data.dataset import Dataset
from titn.inference import TrainedModel, load
from titn.models import create_model
from titn.own_parts import load_parts, register_dataset, register_model, register_policy, register_teacher
from titn.training.callbacks import Callback

__version__ = "0.1.0"
__all__ = [
    "Acceleration", "Callback", "Dataset", "TrainedModel", "__version__", "accelerate", "create_model", "load",
    "load_parts", "register_dataset", "register_model", "register_policy", "register_teacher", "restore",
]  # fmt: skip
