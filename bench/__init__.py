"""Benchmarks: what vmpool costs on this machine, by phase, with the raw samples."""
