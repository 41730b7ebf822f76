"""Data sets: what to train on, and loading it into memory as arrays of labeled images.

`DataSource` names a data set, `load_data` loads it, and `write_image_folder` writes it as image files. Training and the
parity check of the export use them. The names imported here are public; the modules are not.
"""

from rnn_train.data.folders import write_image_folder
from rnn_train.data.idx import read_idx
from rnn_train.data.load import load_data
from rnn_train.data.source import Data, DataSource, HeldOut, LabeledImages

__all__ = ["Data", "DataSource", "HeldOut", "LabeledImages", "load_data", "read_idx", "write_image_folder"]
