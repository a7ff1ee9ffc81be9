"""The search: lives are drawn, steered, played and asked by the hundred, and what fails is made small.

``drawing`` draws bytes, ``generate`` makes a life of them, and ``steer`` chooses among those drawn. ``campaign`` plays and asks, as ``settings`` say and ``limits`` allow,
``suspects`` sorts what is found, ``shrink`` makes it small, and ``consequences`` tells a fault from what follows from it; ``tell`` and ``notes`` say it. ``asking`` plays
one life alone, ``workers`` shares the work among processes, and ``replay`` plays again what was saved.
"""
