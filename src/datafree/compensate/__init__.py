"""Repairs from weights and stored statistics alone."""

from datafree.compensate.absorb import Absorb
from datafree.compensate.bias_correction import BiasCorrection
from datafree.compensate.compensator import Compensator
from datafree.compensate.equalize import Equalize
from datafree.compensate.equalize_activations import EqualizeActivations
from datafree.compensate.lbyl import LBYL
from datafree.compensate.least_squares import LeastSquares
from datafree.compensate.neuron_merging import NeuronMerging
from datafree.compensate.udfc import UDFC

CATALOGUE: dict[str, type] = {
    "absorb": Absorb,
    "bias_correction": BiasCorrection,
    "equalize": Equalize,
    "equalize_activations": EqualizeActivations,
    "lbyl": LBYL,
    "least_squares": LeastSquares,
    "neuron_merging": NeuronMerging,
    "udfc": UDFC,
}

__all__ = ["CATALOGUE", "Compensator"]
