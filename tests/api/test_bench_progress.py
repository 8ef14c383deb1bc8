"""A bar that goes back tells nobody how far it is."""

from hypothesis import example, given
from hypothesis import strategies as st

from edge_sd.api._bench import Rising


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
@example([0.0, 0.5, 1.0, 0.0, 1.0, 0.0, 1.0])
def test_a_fraction_that_starts_over_never_falls(fractions: list[float]) -> None:
    rising = Rising()
    seen = [rising.of(fraction) for fraction in fractions]
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 1


def test_each_part_takes_half_of_what_is_left() -> None:
    rising = Rising()
    assert [rising.of(fraction) for fraction in (0, 1, 0, 1, 0, 0.5)] == [0, 0.5, 0.5, 0.75, 0.75, 0.8125]
