"""The checks of `dpwatch doctor`, a module per subject. A check reports its result; none raises."""
