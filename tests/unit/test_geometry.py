import numpy as np
import pytest
import torch

from medimg_utils.errors import InputError
from medimg_utils.geometry import Geometry


@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (33, 80)])
def test_stacks_go_the_way_of_single_images(shape):
    stack = torch.rand(3, 2, *shape)
    geometry = Geometry(shape, 48)
    square = geometry.to_square(stack)
    assert square.shape == (3, 2, 48, 48)
    np.testing.assert_allclose(square[1, 0], geometry.to_square(stack[1, 0]), atol=1e-6)
    back = geometry.restore(square)
    assert back.shape == stack.shape
    np.testing.assert_allclose(back[2, 1], geometry.restore(square[2, 1]), atol=1e-6)


def test_values_stay_in_their_range():
    """Bilinear resampling averages: it adds no overshoot, whatever the range."""
    stack = -30 + 100 * torch.rand(2, 50, 70)
    geometry = Geometry((50, 70), 96)
    back = geometry.restore(geometry.to_square(stack))
    assert back.min() >= min(float(stack.min()), 0) - 1e-4
    assert back.max() <= stack.max() + 1e-4


def test_the_same_size_changes_nothing():
    stack = torch.rand(2, 32, 32)
    geometry = Geometry((32, 32), 32)
    assert torch.equal(geometry.to_square(stack), stack)
    assert torch.equal(geometry.restore(stack), stack)


def test_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\(10, 10\) was expected"):
        Geometry((10, 10), 20).to_square(torch.zeros(3, 10, 11))
