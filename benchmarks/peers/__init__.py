"""What else a user could pick, under equal numbers of queries: ``python -m benchmarks.peers``."""
