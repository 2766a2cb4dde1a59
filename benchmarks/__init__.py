"""Benchmarks: our bus and worker against what users would write or install instead, in the same run."""
