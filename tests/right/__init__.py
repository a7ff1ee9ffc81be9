"""Right optimizers of every shape, as authors out in the world ship them; none of them may fail a check."""
