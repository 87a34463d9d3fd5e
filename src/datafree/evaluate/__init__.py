"""The only room that may open real data: test sets, accuracy, fidelity."""

from datafree.evaluate.accuracy import Accuracy, evaluate
from datafree.evaluate.datasets import Dataset, open_dataset
from datafree.evaluate.fidelity import Fidelity, fidelity

__all__ = ["Accuracy", "Dataset", "Fidelity", "evaluate", "fidelity", "open_dataset"]
