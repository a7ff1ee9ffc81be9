"""How well the harness catches wrong optimizers, measured."""
