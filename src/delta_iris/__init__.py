"""Δ-IRIS: a world-model agent with context-aware tokens, on PyTorch Lightning."""

import delta_iris.envs.registration  # noqa: F401  (registers the environments with Gymnasium)
