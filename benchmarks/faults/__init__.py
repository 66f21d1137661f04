"""What becomes of a fit when something breaks: ``python -m benchmarks.faults.kill``."""
