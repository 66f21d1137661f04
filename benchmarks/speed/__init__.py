"""Timings of one gradient estimate and of its parts: ``python -m benchmarks.speed.NAME``."""
