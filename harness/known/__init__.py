"""What released software is known to do wrong.

``ledger`` has all entries and the order in which they are asked, ``entry`` and ``seen`` what one is and may ask. Each kind has a module of its own. The life of each entry
is ``NAME.json``, and ``evidence`` says under which versions of torch it was seen.
"""
