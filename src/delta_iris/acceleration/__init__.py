"""Compilation, CUDA graphs, side streams and inference copies: how a step runs, not what it computes."""
