"""Δ-IRIS: a world-model agent with context-aware tokens, on PyTorch Lightning."""
