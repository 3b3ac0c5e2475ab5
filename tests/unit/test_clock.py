"""The phases of a tick."""

from hetmem.hardware.clock import Clock


def test_arbitration_comes_after_everything_else_of_its_tick():
    env, order = Clock(), []

    def note(what):
        return lambda _event: order.append((env.now, what))

    def start(_event):
        env.arbitrate().callbacks.append(note("arbitration"))
        event = env.event()
        event.callbacks.append(note("control"))
        event.succeed()

    env.timeout(3).callbacks.append(start)
    env.timeout(3).callbacks.append(note("completion"))
    env.run()
    assert order == [(3, "completion"), (3, "control"), (3, "arbitration")]


def test_control_that_arbitration_causes_still_precedes_the_next_arbitration():
    env, order = Clock(), []

    def first(_event):
        order.append("first choice")
        event = env.event()
        event.callbacks.append(lambda _: order.append("control"))
        event.succeed()

    env.arbitrate().callbacks.append(first)
    env.arbitrate().callbacks.append(lambda _: order.append("second choice"))
    env.run()
    assert order == ["first choice", "control", "second choice"]


def test_a_given_event_is_triggered_and_carries_no_value():
    env = Clock()
    event = env.event()
    assert env.arbitrate(event) is event
    assert event.triggered
    env.run()
    assert event.processed
    assert event.value is None


def test_whether_only_arbitration_is_left():
    env, seen = Clock(), []
    assert env.arbitrates

    def look(_event):
        seen.append(env.arbitrates)

    def look_beside_an_arbitration(_event):
        env.arbitrate()
        seen.append(env.arbitrates)

    env.timeout(1).callbacks.append(look)  # the other event of tick 1 is left
    env.timeout(1).callbacks.append(look)  # nothing but later ticks is left
    env.timeout(2).callbacks.append(look_beside_an_arbitration)
    env.timeout(3)
    env.run()
    assert seen == [False, True, True]


def test_time_is_an_exact_integer():
    env = Clock()
    env.timeout(2**60)
    env.timeout(2**60 + 1)
    env.run()
    assert env.now == 2**60 + 1
    assert type(env.now) is int
