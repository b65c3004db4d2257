"""Measurements: one module for each thing that is measured, all of them listed in `bench.suite`."""
