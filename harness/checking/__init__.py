"""The questions. Each check looks at the evidence of one life and yields what it finds wrong.

``checks`` has them all; ``twins`` asks the class itself, by a second life that must come out alike; ``determinism`` asks whether the same life comes out the same.
"""
