"""Losses of distillation and of adversarial generators, for batches of logits and of moments.

Legend: t, s [N, ..., K] scores of teacher and student (`functional.scores`); p = softmax(t); m, v [C] mean and variance
of a batch, mu, sigma those that are remembered. Everything is a mean over the batch ("batchmean"), in nats, and
differentiable; logarithms of probabilities are taken together with the softmax, so that p = 0 is no NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softened_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) of every image (Hinton et al. 2015, 1503.02531). -> [N]

    T^2 keeps the gradient's size as T grows.
    """
    told = F.log_softmax(teacher / temperature, -1)
    heard = F.log_softmax(student / temperature, -1)
    return temperature**2 * (told.exp() * (told - heard)).sum(-1)


def instance_entropy(logits: Tensor) -> Tensor:
    """Mean over images of H(p): 0 where every answer is certain, log K where none says anything. -> []"""
    log = F.log_softmax(logits, -1)
    return -(log.exp() * log).sum(-1).mean()


def batch_entropy(logits: Tensor) -> Tensor:
    """H of the mean answer of the batch: log K where all classes are shown alike. -> []"""
    mean = F.softmax(logits, -1).flatten(0, -2).mean(0)
    return -torch.special.xlogy(mean, mean.clamp(min=1e-12)).sum()


def gaussian_divergence(mean: Tensor, std: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(m, v) || N(mu, sigma^2)) of every channel, [C]:

        ((m - mu)^2 + v) / (2 sigma^2) - log(v / sigma^2) / 2 - 1/2

    The same number before and after an affine map of the channel: a BatchNorm's input and output tell alike.
    """
    ratio = std / sigma
    return 0.5 * (((mean - mu) / sigma).square() + ratio.square() - 1) - ratio.log()


def symmetric_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(KL(p_t || p_s) + KL(p_s || p_t)) / 2 of every image (Jeffreys' divergence, halved). -> [N]

    Both directions together are sum_k (p_t - p_s)(log p_t - log p_s).
    """
    told, heard = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    return 0.5 * ((told.exp() - heard.exp()) * (told - heard)).sum(-1)
