from xenstored.outbox import Outbox
from xenstored.quotas import Usage


def test_messages_leave_in_order_in_whatever_pieces_the_socket_takes():
    outbox = Outbox()
    for data in (b"one", b"two", b"three"):
        outbox.reply(data)
    taken = b""
    while data := outbox.pending(1):
        taken += data[:2]
        outbox.sent(len(data[:2]))
    assert taken == b"onetwothree"
    assert outbox.size == 0


def test_pending_is_limited_to_what_is_asked_and_a_message_more():
    outbox = Outbox()
    for _ in range(10):
        outbox.reply(b"12345")
    assert outbox.pending(12) == b"12345" * 3
    outbox.sent(3)
    assert outbox.pending(12) == (b"12345" * 3)[3:]


def test_an_event_that_waits_unsent_is_not_queued_again():
    outbox = Outbox()
    outbox.event(b"event", None)
    outbox.event(b"event", None)
    outbox.event(b"other", None)
    assert outbox.pending(100) == b"eventother"


def test_an_event_of_which_a_byte_is_sent_is_queued_again():
    outbox = Outbox()
    outbox.event(b"event", None)
    outbox.sent(1)
    outbox.event(b"event", None)
    assert outbox.pending(100) == b"ventevent"


def test_replies_in_the_same_words_are_all_sent():
    outbox = Outbox()
    outbox.reply(b"OK")
    outbox.reply(b"OK")
    assert outbox.pending(100) == b"OKOK"


def test_an_event_is_charged_until_its_last_byte_is_sent():
    outbox, usage = Outbox(), Usage(1)
    outbox.event(b"event", usage)
    outbox.event(b"event", usage)
    assert usage.outstanding_events == 1
    assert outbox.sent(4) == set()
    assert usage.outstanding_events == 1
    assert outbox.sent(1) == {usage}
    assert usage.outstanding_events == 0


def test_clearing_gives_all_charges_back():
    outbox, usage = Outbox(), Usage(1)
    outbox.event(b"one", usage)
    outbox.reply(b"two")
    outbox.event(b"three", usage)
    outbox.sent(1)
    assert outbox.clear() == {usage}
    assert (usage.outstanding_events, outbox.size, outbox.pending(1)) == (0, 0, b"")
