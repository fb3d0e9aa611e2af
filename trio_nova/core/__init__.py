"""What decides and never waits: no Trio, no clock and no randomness; `now` and `spread` are arguments."""
