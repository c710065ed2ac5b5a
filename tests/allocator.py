"""What the profiler's allocator events say of memory: the truth that figures are tested by."""

import itertools


def rises(profiler):
    """How far above its start each step's highest moment was, by the step's name: from, to.

    Left out is what no tensor of the program's holds: what gloo copies for itself inside a call (on
    a device no such copy lies, and when its own threads free it is chance), and a kernel's scratch,
    freed before the kernel is over. Frees of what was made before the profiler started it ignores,
    and it sees none on gloo's threads, which are at times the last to let go of a tensor. When one
    went that is missing ever after is unknown: the lower figure has it gone at once, the higher one
    never. They are the same where all frees were seen.

    Args:
        profiler: With `profile_memory`, stopped; steps are `record_function("step …")`. What the
            last one keeps is still there in both figures.

    Returns:
        Two figures in bytes by name of the step.
    """
    results = profiler.profiler.kineto_results
    events = results.events()
    steps = [event for event in events if event.name().startswith("step ")]
    last = max(event.start_ns() for event in steps)
    memory = _own(results.experimental_event_tree(), last)
    found = {}
    for step in steps:
        within = [each for each in memory if step.start_ns() <= each[0] <= step.end_ns()]
        known = [delta for _, delta, missing in within if not missing]
        found[step.name()] = (_rise(known), _rise([delta for _, delta, _ in within]))
    return found


def made_and_kept(profiler, begins, ends):
    """Bytes allocated after one moment that were still held at another.

    Args:
        profiler: With `profile_memory`, stopped.
        begins: Name of a `record_function` that stands at the first moment.
        ends: At the second.
    """
    results = profiler.profiler.kineto_results
    at = {event.name(): event.start_ns() for event in results.events()}
    alive = {}
    for event in sorted(_memory_events(results.experimental_event_tree()), key=_time):
        if at[begins] <= event.start_time_ns <= at[ends]:
            address, delta = event.extra_fields.ptr, event.extra_fields.alloc_size
            if delta > 0:
                alive[address] = delta
            else:
                alive.pop(address, None)
    return sum(alive.values())


def _time(event):
    return event.start_time_ns


def _rise(deltas):
    return max(0, *itertools.accumulate(deltas))


def _own(tree, last_ns):
    """Of allocations and frees, but for gloo's and the kernels': time, bytes, was no free seen."""
    alive = {}  # by address: the event and its place in `found`
    found = []
    for event in sorted(_memory_events(tree), key=_time):
        address, delta = event.extra_fields.ptr, event.extra_fields.alloc_size
        maker, place = alive.pop(address, (None, None))
        if delta > 0:
            if place is not None:
                found[place] = (*found[place][:2], True)
            theirs = any(name.startswith(("c10d::", "gloo:")) for name in _above(event))
            alive[address] = (event, None if theirs else len(found))
            if not theirs:
                found.append((event.start_time_ns, delta, False))
        elif maker is None:
            found.append((event.start_time_ns, delta, False))
        elif place is not None and _in_one_kernel(maker, event):
            found[place] = (maker.start_time_ns, 0, False)
        elif place is not None:
            found.append((event.start_time_ns, delta, False))
    for maker, place in alive.values():
        if place is not None and maker.start_time_ns < last_ns:
            found[place] = (*found[place][:2], True)
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
