"""Measures of agents and world models."""
