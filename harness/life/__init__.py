"""A life as data: parameters, groups and events (``trace``), and what its recipes stand for: memory, objectives, schedules.

A trace says nothing about who plays it. It is JSON with a schema version, and what an old one means never changes.
"""
