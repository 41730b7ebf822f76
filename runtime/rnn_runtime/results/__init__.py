"""Results of image files: the run that makes them, writing rows, reading those of an earlier run, and counting them.

`rnn-infer` uses it, and whoever wants its files from Python. Training and export do not.
"""
