"""Real programs, each played with a class of ``torch.optim`` and with the fast class in its place, from the same seed."""
