"""The conformance report: recorded runs as one plain value (``model.py``), and its readers, each a small module.

``page.py`` is one self-contained HTML file, ``figures.py`` its plots, ``markdown.py`` a comment for a pull request, ``badge.py`` a badge,
``compare.py`` what became of an earlier report. ``write.py`` writes all of them. Templates, CSS and JavaScript are in ``templates/``.
"""
