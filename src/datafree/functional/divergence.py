"""How far one set of class scores is from another."""

from __future__ import annotations

from torch import Tensor


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax outputs, in nats. teacher, student: logits [..., classes] -> [...]"""
    told, heard = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    return (told.exp() * (told - heard)).sum(-1)
