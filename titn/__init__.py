"""Train a distilled Transformer-in-Transformer on small images."""

from titn.accelerate import Acceleration, accelerate, restore
from titn.inference import TrainedModel, load
from titn.models import create_model

__version__ = "0.1.0"
__all__ = ["Acceleration", "TrainedModel", "__version__", "accelerate", "create_model", "load", "restore"]
