"""The only room that may open real data: test sets, accuracy, fidelity, audits."""

from datafree.evaluate.accuracy import Accuracy, evaluate
from datafree.evaluate.audit import audit
from datafree.evaluate.datasets import Dataset
from datafree.evaluate.fidelity import Fidelity, fidelity
from datafree.evaluate.forecast import Forecast, forecast
from datafree.evaluate.pictures import open_dataset

__all__ = ["Accuracy", "Dataset", "Fidelity", "Forecast", "audit", "evaluate", "fidelity", "forecast", "open_dataset"]
