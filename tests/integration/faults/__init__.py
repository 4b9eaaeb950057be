"""Faults that users of other systems report, done to whole processes and runs."""
