"""The judge: traces in, verdicts out.

``generate`` draws a trace (``trace``: an optimizer's life as data), ``play`` plays it on a subject (``subjects``) and records what
happened, ``judge`` predicts each step with the reference on error-bounded numbers (``bounded``, ``formats``); ``evaluations`` and
``orthogonal`` do so for LBFGS and Muon, whose steps are judged in their own way. ``checks`` asks one named question each,
``campaign`` does it many times and shrinks what fails, ``explain`` and ``repro`` tell it to a person. ``certificate`` shows how far
the references are from the truth.
"""
