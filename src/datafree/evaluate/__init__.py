"""The only room that may open real data: test sets, accuracy, fidelity."""

from datafree.evaluate.accuracy import Accuracy, evaluate
from datafree.evaluate.datasets import Dataset
from datafree.evaluate.fidelity import Fidelity, fidelity
from datafree.evaluate.forecast import Forecast, forecast
from datafree.evaluate.pictures import open_dataset

__all__ = ["Accuracy", "Dataset", "Fidelity", "Forecast", "evaluate", "fidelity", "forecast", "open_dataset"]
