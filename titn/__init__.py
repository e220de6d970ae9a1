"""Train a distilled Transformer-in-Transformer on small images."""

from titn.models import create_model

__version__ = "0.1.0"
__all__ = ["__version__", "create_model"]
