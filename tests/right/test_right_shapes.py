"""Right optimizers of every shape pass every check: none of them is a false alarm."""

import logging

import pytest

from right import bases, groups, life, options, orders, parameters, precisions, signatures, states, steps
from right.base import SHAPES
from stepcheck import check_optimizer

MODULES = (bases, groups, life, options, orders, parameters, precisions, signatures, states, steps)


def checked(shape, examples, folder):
    logging.disable()
    try:
        report = check_optimizer(shape.make, shape.like, examples=examples, dtypes=shape.dtypes, out=folder)
    finally:
        logging.disable(logging.NOTSET)
    if shape.named or report.divergences:
        report.raise_on_divergence()
    # Of options with other names nothing is learned, and that is said.
    assert report.verdict == ("pass" if shape.named else "unknown"), report.result.notes


def test_each_has_a_name_of_its_own():
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) >= 100


@pytest.mark.sampled(48)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_right_shapes_pass(shape, tmp_path):
    checked(shape, 10 if shape.costly else 20, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_right_shapes_pass_long(shape, tmp_path):
    checked(shape, 200, tmp_path)
