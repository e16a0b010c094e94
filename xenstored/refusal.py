"""The one exception of the xenstore cores: a request that gets an error reply."""

from common.xenstore_wire import XSD_ERRORS


class Refusal(Exception):
    """A request is refused; `name` (one of XSD_ERRORS) is the reply's payload."""

    def __init__(self, name: str) -> None:
        assert name in XSD_ERRORS
        super().__init__(name)
        self.name = name
