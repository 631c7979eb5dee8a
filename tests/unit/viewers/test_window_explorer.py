import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg_utils.io import apply_window
from medimg_utils.viewers import WindowExplorer

RAMP = np.arange(-1000, 1000).reshape(40, 50)


@given(
    centre=st.integers(-1200, 1200),
    width=st.integers(1, 3000),
)
def test_with_all_greys_it_is_the_window_of_dicom(centre: int, width: int) -> None:
    shown = WindowExplorer(RAMP, window=(centre, width), bits=12).levels()
    exact = 255 * apply_window(RAMP, centre, width, function="LINEAR_EXACT")
    assert np.abs(shown - exact).max() <= 0.6  # half a grey, and a step of 4096


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_so_many_bits_give_so_many_greys(bits: int) -> None:
    explorer = WindowExplorer(RAMP, window=(0, 1000), bits=bits)
    assert explorer.greys() == 2**bits
    assert set(explorer.levels().ravel()) >= {0, 255}


def test_greys_that_were_lost_before_the_window_do_not_come_back() -> None:
    # 16 steps of 125 units: two lie in the window, the others are black or white.
    explorer = WindowExplorer(RAMP, window=(0, 250), bits=4, early=True)
    assert explorer.greys() == 4
    explorer.early = False
    assert explorer.greys() == 16


def test_values_survive_the_way_to_the_browser() -> None:
    import zlib

    explorer = WindowExplorer(RAMP, window=(0, 10))
    sent = np.frombuffer(zlib.decompress(explorer.value_data), "<u2")
    assert (sent.astype(int) + explorer.low == RAMP.ravel()).all()


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((4, 4)), {}, "spans 0 units"),
        (np.array([[0, 70000]]), {}, "spans 70000 units"),
        (np.array([[0, np.nan]]), {}, "NaN"),
        (np.zeros((2, 2, 2)), {}, r"expected \(H, W\)"),
        (RAMP, {"bits": 0}, "bits is 0"),
        (RAMP, {"window": (0, 0)}, "'start' has width 0"),
        (RAMP, {"presets": {"bone": (0, -5)}}, "'bone' has width -5"),
    ],
)
def test_wrong_input_is_refused(image, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowExplorer(image, **{"window": (0, 100), **options})


def test_the_bundle_holds_a_still_picture() -> None:
    data, _ = WindowExplorer(RAMP, window=(0, 9), title="A ramp")._repr_mimebundle_()
    assert len(data["image/png"]) > 1000
    assert data["text/plain"] == "A ramp beside the histogram of its values."
