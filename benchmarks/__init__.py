"""Measurements, run by hand: ``python -m benchmarks.NAME --help`` says what each one prints."""
