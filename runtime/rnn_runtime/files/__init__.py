"""Files that appear under their name only once they are whole.

Everything in the three packages that writes a file uses it.
"""
