"""What the profiler's allocator events say of memory: the oracle of the ledger's peaks."""


def rises(profiler):
    """How far above its start each step's highest moment was, by the step's name.

    Left out is what no tensor of the program's holds: what gloo copies for itself inside a call (on
    a device no such copy lies, and when its own threads free it is chance), and a kernel's scratch,
    freed before the kernel is over. Frees of what was made before the profiler started it ignores.

    Args:
        profiler: With `profile_memory`, stopped; steps are `record_function("step …")`.

    Returns:
        Bytes by name of the step.
    """
    results = profiler.profiler.kineto_results
    events = results.events()
    steps = [event for event in events if event.name().startswith("step ")]
    memory = _own(results.experimental_event_tree())
    found = {}
    for step in steps:
        held = rise = 0
        for at_ns, delta in memory:
            if step.start_ns() <= at_ns <= step.end_ns():
                held += delta
                rise = max(rise, held)
        found[step.name()] = rise
    return found


def _own(tree):
    """Times and bytes of allocations and frees, but for gloo's and the kernels'."""
    alive = {}  # by address: the event and its place in `found`
    found = []
    for event in sorted(_memory_events(tree), key=lambda event: event.start_time_ns):
        address, delta = event.extra_fields.ptr, event.extra_fields.alloc_size
        maker, place = alive.pop(address, (None, None)) if delta < 0 else (None, None)
        if delta > 0:
            theirs = any(name.startswith(("c10d::", "gloo:")) for name in _above(event))
            alive[address] = (event, None if theirs else len(found))
            if not theirs:
                found.append((event.start_time_ns, delta))
        elif maker is None:
            found.append((event.start_time_ns, delta))
        elif place is not None and _in_one_kernel(maker, event):
            found[place] = (maker.start_time_ns, 0)
        elif place is not None:
            found.append((event.start_time_ns, delta))
    return found


def _in_one_kernel(made, freed):
    return None not in (made.parent, freed.parent) and made.parent.id == freed.parent.id


def _memory_events(tree):
    ahead = list(tree)
    while ahead:
        event = ahead.pop()
        if event.name == "[memory]":
            yield event
        ahead.extend(event.children)


def _above(event):
    while (event := event.parent) is not None:
        yield event.name
