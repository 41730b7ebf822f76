"""Files that appear under their name only once they are complete.

All three packages write their checkpoints, models, results and reports through it.
"""
