"""The search: lives are drawn, steered, played and asked by the hundred, and what fails is made small.

``generate`` makes a life of bytes, ``steer`` chooses among those drawn, ``campaign`` plays and asks, ``shrink`` makes small, ``consequences`` tells a fault from what
follows from it, ``workers`` shares the work among processes, and ``replay`` plays again what was saved.
"""
