"""When a launch ends and when it stops taking rows, on a clock of the test's own."""

from janus_hpc.comm.exchange import StepHeader
from janus_hpc.engine.ending import Horizon, drain_after_s, is_last, merge_until_s
from janus_hpc.engine.tallies import Tallies


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_steps_end_when_all_are_done_or_one_asks_to_stop_or_nothing_moves() -> None:
    busy, wanting = StepHeader(4), StepHeader(0, want_rows=1)
    done, stop, idle = StepHeader(0, done=True), StepHeader(3, stop=True), StepHeader(0)
    assert is_last([done, done])
    assert not is_last([done, busy])
    assert is_last([busy, stop])
    assert (
        not is_last([idle, busy]) and not is_last([idle, wanting]) and not is_last([done, wanting])
    )
    # Rows are left, but nobody has time for them.
    assert is_last([idle, idle]) and is_last([done, idle])


def test_draining_takes_at_most_a_tenth_of_a_short_job() -> None:
    assert drain_after_s(10_000, 120) == 9_880
    assert drain_after_s(600, 120) == 540
    assert drain_after_s(600, 10) == 590


def test_half_of_what_is_kept_for_draining_is_for_merging() -> None:
    assert merge_until_s(10_000, 120) == 9_940
    assert merge_until_s(600, 120) == 570


def test_no_row_is_taken_that_cannot_end_in_time_at_the_measured_rate() -> None:
    clock = Clock()
    horizon = Horizon(100.0, clock)
    tallies = Tallies()
    assert horizon.admits(tallies, 0.0)
    tallies.step(8, 8, 0.5)
    # 40 tokens at most, 0.5 s each.
    clock.now_s = 79.9
    assert horizon.admits(tallies, 40.0)
    clock.now_s = 80.1
    assert not horizon.admits(tallies, 40.0)
    # Answers turn out to have 10 tokens.
    tallies.answer(10)
    assert horizon.admits(tallies, 40.0)
    clock.now_s = 95.1
    assert not horizon.admits(tallies, 40.0)
    assert not horizon.is_over()
    clock.now_s = 100.0
    assert horizon.is_over()


def test_without_an_end_there_is_always_time() -> None:
    tallies = Tallies()
    tallies.step(1, 1, 1e9)
    assert Horizon.after(None).admits(tallies, 1e9)
    assert not Horizon.after(None).is_over()
