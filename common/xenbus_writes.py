"""How an end of a device writes into its own directory: only while that is there.

Owns: the transaction that keeps a driver from making again what the toolstack has just removed.
Source: Linux's `xenbus_switch_state`, which writes a state only over one that is there.
"""

from collections.abc import Mapping, Sequence

from common.xenstore import Transaction, XenStoreClient, XenStoreError


def write_if_there(
    store: XenStoreClient, directory: str, values: Mapping[str, object], gone: Sequence[str] = ()
) -> bool:
    """Write `values` by key, and remove the keys `gone`, in one transaction.

    False, and nothing is written, where `directory` has no `state`, or we may not write there (of
    what is removed the store may say no more to a guest). Raises XenStoreError.
    """

    def write(nodes: XenStoreClient | Transaction) -> bool:
        if not nodes.exists(f"{directory}/state"):
            return False
        for key, value in values.items():
            nodes.write(f"{directory}/{key}", str(value).encode("latin-1", "replace"))
        for key in gone:
            if nodes.exists(f"{directory}/{key}"):
                nodes.rm(f"{directory}/{key}")
        return True

    try:
        return store.transact(write)
    except XenStoreError as error:
        if error.name == "EACCES":
            return False
        if error.name != "EAGAIN":
            raise
        return write(store)  # somebody writes there all the time: nothing of ours may wait for that
