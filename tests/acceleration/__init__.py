"""Tests of `delta_iris.acceleration`."""
