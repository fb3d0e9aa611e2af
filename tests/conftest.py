"""What all tests share: how hypothesis searches."""

from __future__ import annotations

from hypothesis import settings

# "ci" tries the same examples on every machine and never judges by the clock; "explore" looks for
# new ones: pytest --hypothesis-profile=explore
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.load_profile("ci")
