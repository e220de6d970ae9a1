"""Augmentation policies: rows of operations for every image."""
