"""Maths: tensors in, tensors out. Knows no model."""
