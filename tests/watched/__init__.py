"""Trainings to be watched: with a fault, and without one. The tests of the room ``watch`` play them."""
