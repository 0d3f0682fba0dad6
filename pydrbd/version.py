"""The version of pydrbd and of the DRBD interfaces it speaks."""

__version__ = "0.1.0"

#: The DRBD release whose wire protocol and metadata are implemented.
DRBD_VERSION = "8.4.11"
#: Protocol versions accepted from a peer, and the one spoken.
PROTOCOL_MIN = 100
PROTOCOL_MAX = 101
