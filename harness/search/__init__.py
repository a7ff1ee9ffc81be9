"""The search: lives are drawn, steered, played and asked by the hundred, and what fails is made small.

``drawing`` has Hypothesis draw bytes, ``generate`` makes a life of them (in one of the ``styles``, from ``tables`` of ``options`` and ``contents``), ``steer`` chooses among those drawn.
``campaign`` plays and asks (``asking``, within ``limits``), sorts what is found (``suspects``, ``consequences``), makes it small (``shrink``) and tells it (``tell``, ``notes``). ``workers`` shares the
work among processes, and ``replay`` plays again what was saved.
"""
