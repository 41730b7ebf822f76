"""Speed and memory, compared with what one would use instead. `python -m benchmarks` runs all."""
