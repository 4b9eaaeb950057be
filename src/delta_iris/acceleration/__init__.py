"""Compilation, CUDA graphs and side streams: how a step runs, not what it computes."""
