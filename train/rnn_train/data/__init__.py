"""Data sets: what to train on, and loading it into memory as arrays of labeled images.

`DataSource` says which data set, `load_data` loads it. Training and export's parity check use them.
"""
