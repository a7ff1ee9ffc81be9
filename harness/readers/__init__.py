"""What becomes of a run once it is read back: one small module for each form. They know runs, not files or campaigns."""
