"""The published CIFAR-10 settings of distillation, on a GPU, in pieces of minutes: `README.md` has the commands."""
