"""TITN, TNT, DeiT and ViT for small images, by name, here and in timm."""

from titn.models import timm_entries as timm_entries  # importing it registers the models with timm
from titn.models.base import ImageTransformer
from titn.models.registry import MODELS, create_model

__all__ = ["MODELS", "ImageTransformer", "create_model"]
