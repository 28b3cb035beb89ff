"""A space written down and read again."""

import random
from dataclasses import replace

import pytest
from ledgers import make_space

from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.choosers import RandomChooser
from spaces.draw import draw
from spaces.methods.vocabulary import KeepVocabulary
from spaces.space import Student
from spaces.space_json import space_from_json, space_to_json


def test_a_space_is_read_back_as_it_was_whatever_the_user_changed():
    space = replace(
        make_space(),
        strategies=tuple(CATALOGUE),
        narrowed=PARAMETERS,
        students=(Student(name="tiny", model="f" * 64, num_layers=2),),
        vocabulary=KeepVocabulary(vocabulary="v" * 64, num_tokens=900),
        lacking={"domains": "no column tells domains apart"},
    )
    again = space_from_json(space_to_json(space))
    assert again == space
    for seed in range(20):
        drawn = [draw(found, RandomChooser(random.Random(seed))) for found in (space, again)]
        assert drawn[0].fingerprint == drawn[1].fingerprint


def test_what_is_no_space_is_refused():
    with pytest.raises(ValueError, match="strategies"):
        space_from_json(b'{"base": "b"}')
