"""Checks in one process what process 0 does for all of several; slow tests start several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import distributed
from core.errors import UserError
from core.partitioning import Partition, make_mesh, one_of_each_process, own_copy


def test_alone_it_does_all_itself():
    class Own(UserError):
        pass

    def refuse():
        raise Own("expected more")

    value = object()  # need not be JSON where it goes nowhere
    assert distributed.by_first(lambda: value) is value
    with pytest.raises(Own, match="expected more"):
        distributed.by_first(refuse)


def test_a_copy_of_what_every_device_holds_is_on_one():
    mesh = make_mesh(2, 2)
    alone, text = jnp.arange(3.0), "no array"
    whole = Partition(mesh, ()).put_whole(np.arange(6.0).reshape(2, 3))
    copies = own_copy({"whole": whole, "alone": alone, "text": text})
    assert copies["alone"] is alone and copies["text"] is text
    assert len(whole.devices()) == 4 and copies["whole"].devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(copies["whole"], whole)


def test_of_one_process_its_first_device_is_all():
    sharding = one_of_each_process()
    assert sharding.device_set == {jax.devices()[0]} and sharding.is_fully_replicated
