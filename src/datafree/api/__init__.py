"""The Python face: from a model to a saved result, and from models to a pack of images."""

from datafree.api.compression import Result, compress
from datafree.api.synthesis import make_pack

__all__ = ["Result", "compress", "make_pack"]
