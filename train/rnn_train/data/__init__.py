"""Data sets: what to train on, and loading it into memory as arrays of labeled images.

`DataSource` says which data set, `load_data` loads it, `write_image_folder` writes one as image files. Training and
export's parity check use them. What is imported here is public; the modules are not.
"""

from rnn_train.data.idx import read_idx
from rnn_train.data.labeled_images import Data, LabeledImages
from rnn_train.data.load import load_data
from rnn_train.data.source import DataSource
from rnn_train.data.write_folder import write_image_folder

__all__ = ["Data", "DataSource", "LabeledImages", "load_data", "read_idx", "write_image_folder"]
