"""Files that are really smaller and really faster, and the proof that they compute what the graph computes."""

from datafree.export.conformance import conformance
from datafree.export.inductor_graph import compile_inductor
from datafree.export.onnx_qdq import export_onnx
from datafree.export.parity import parity
from datafree.export.preprocess import read_preprocess, write_preprocess
from datafree.export.pt2 import export_pt2, load_pt2
from datafree.export.sparse import export_sparse, is_sparse, load_sparse, read_sparse

__all__ = [
    "compile_inductor",
    "conformance",
    "export_onnx",
    "export_pt2",
    "export_sparse",
    "is_sparse",
    "load_pt2",
    "load_sparse",
    "parity",
    "read_preprocess",
    "read_sparse",
    "write_preprocess",
]
