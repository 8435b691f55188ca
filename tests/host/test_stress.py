"""A short day in production: jobs of all kinds in one queue, by bench/stress.py."""

from __future__ import annotations

import pytest

from bench.jobs import Uploads
from bench.stress import SHARES, all_alone, draw, driven, report
from tools.client import Client

pytestmark = pytest.mark.server

COUNT, SEED, STEPS = 12, 68, (4, 5)


def test_every_picture_of_a_mixed_queue_is_its_picture_alone(client: Client) -> None:
    jobs = draw(COUNT, SEED, Uploads(client), STEPS)
    assert {job.kind for job in jobs} == set(SHARES)
    outcomes = list(driven(client, jobs))
    found = report(outcomes, all_alone(client, outcomes))
    assert found["faults"] == {}
    assert found["jobs"] == COUNT
    # interrupts and deletions may come too late, and then their pictures are compared as well
    assert found["equal"] == found["finished"] >= COUNT // 2
    assert found["plain_equal"] == sum(job.kind == "plain" for job in jobs)
