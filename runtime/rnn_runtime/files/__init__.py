"""Files that appear under their name only once they are complete.

All code in the three packages that writes a file uses it.
"""
