"""What the paper reports, measured again at a size that a CPU can do."""
