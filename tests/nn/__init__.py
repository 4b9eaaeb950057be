"""Tests of `delta_iris.nn`."""
