"""The only room that may open real data: test sets, accuracy, fidelity."""

from datafree.evaluate.accuracy import Accuracy, evaluate
from datafree.evaluate.datasets import Dataset
from datafree.evaluate.fidelity import Fidelity, fidelity
from datafree.evaluate.pictures import open_dataset

__all__ = ["Accuracy", "Dataset", "Fidelity", "evaluate", "fidelity", "open_dataset"]
