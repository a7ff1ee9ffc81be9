"""Drop-in ``torch.optim`` classes over batched kernels, one for each of its optimizers."""
