"""Tests of the numbers that processes share."""

from __future__ import annotations

import re

import pytest

from delta_iris.errors import SharedUserError
from delta_iris.training.split import check_split, next_multiple


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("number", [1, 7, 8, 12, 40])
def test_the_number_that_a_refusal_names_is_the_next_that_is_accepted(number: int, world_size: int) -> None:
    refused = number % world_size != 0
    if refused:
        with pytest.raises(SharedUserError, match=r"data\.num_envs is \d+, which cannot be split") as error:
            check_split("data.num_envs", number, world_size)
        found = re.search(r"such as (\d+)", str(error.value))
        assert found is not None
        assert int(found[1]) == next_multiple(number, world_size)
    check_split("data.num_envs", next_multiple(number, world_size), world_size)
    assert number <= next_multiple(number, world_size) < number + world_size
