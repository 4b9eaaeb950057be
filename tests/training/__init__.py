"""Tests of `delta_iris.training`."""
