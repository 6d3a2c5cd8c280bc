"""The end of a trial that hangs."""

import time

from budgettune.worker.watchdog import HUNG_STATUS, TrialLimit


def test_a_step_that_hangs_is_recorded_and_ends_the_process():
    seen, ended = [], []
    with TrialLimit(0.05, 0.05, record=seen.append, end_process=ended.append) as limit:
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
        assert limit.is_over
    assert ended == [HUNG_STATUS]
    assert [error.failure_kind for error in seen] == ["timeout"]
