"""A program that trains what `own_training` trains."""

import budgettune as bt
from tests.support.own_training import train

train(bt.Trial.current(params={"x": 1.0}))
