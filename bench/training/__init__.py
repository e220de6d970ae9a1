"""Training: steps against timm's TNT, one switch after another, along each size; and accuracy over seeds."""
