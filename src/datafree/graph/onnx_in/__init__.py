"""ONNX in: a file's operators as the ATen calls they mean, run step by step so that `torch.export` can follow.

A value is a tensor, or a *literal*: a numpy array of numbers that shapes are made of (`literals.py`). Which operators
are known is the literal `TABLE` of each of the three files of operators, put together in `operators.py`.
"""
