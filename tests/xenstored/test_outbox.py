from xenstored.outbox import Outbox


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


def test_an_event_is_counted_for_its_cause_until_its_last_byte_is_sent():
    outbox = Outbox()
    outbox.event(b"event", 1)
    outbox.event(b"event", 1)
    assert outbox.caused == {1: 1}
    outbox.sent(4)
    assert outbox.caused == {1: 1}
    outbox.sent(1)
    assert outbox.caused == {}


def test_a_watch_is_folded_until_the_first_byte_of_its_event_is_sent():
    outbox = Outbox()
    outbox.fold(b"event", "watch")
    assert outbox.folded == {"watch"}
    outbox.sent(1)
    assert outbox.folded == set()


def test_what_waits_in_the_same_words_already_is_not_folded_again():
    outbox = Outbox()
    outbox.event(b"event", None)
    outbox.fold(b"event", "watch")
    assert outbox.pending(100) == b"event"


def test_clearing_forgets_all_causes():
    outbox = Outbox()
    outbox.event(b"one", 1)
    outbox.reply(b"two")
    outbox.event(b"three", 2)
    outbox.fold(b"four", "watch")
    outbox.sent(1)
    outbox.clear()
    assert (outbox.caused, outbox.folded, outbox.size, outbox.pending(1)) == ({}, set(), 0, b"")
