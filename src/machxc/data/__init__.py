"""From files of samples to datasets: the readers, and the converted store. Input is checked here, and nowhere else.

A file goes through `Source` (decompress, hash), its format's reader (`RawBatch`: texts or features, labels as they are
written, lines), and `Encoder` (token hashes, label ids) into arrays in memory (`read`), in parts (`batches`), or in
files (`convert`, `open_store`).
"""

from machxc.data.conversion import convert
from machxc.data.dataset import Dataset
from machxc.data.options import ReadOptions, SourceFacts
from machxc.data.reading import batches, read
from machxc.data.store import is_store, open_store

__all__ = ["Dataset", "ReadOptions", "SourceFacts", "batches", "convert", "is_store", "open_store", "read"]
