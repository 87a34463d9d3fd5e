"""The Python face: from a model to a saved result, from a teacher to a student, and from models to a pack of images."""

from datafree.api.compression import compress
from datafree.api.distillation import make_student
from datafree.api.result import Result
from datafree.api.synthesis import make_pack

__all__ = ["Result", "compress", "make_pack", "make_student"]
