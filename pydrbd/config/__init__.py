"""Configuration in DRBD's syntax: files -> typed, frozen options, and what one node makes of them.

Floor: words (errors, units and vocabulary only). Start with `load`, then `for_node` for one
resource; `dump` is the way back to text. The table of all options is in options.py.
"""

from __future__ import annotations

from pydrbd.config.dump import dump
from pydrbd.config.model import (
    Address,
    Config,
    Connection,
    DeviceKind,
    DeviceName,
    Endpoint,
    Host,
    MetaDisk,
    MetaDiskKind,
    Resource,
    Sections,
    Volume,
)
from pydrbd.config.names import resolve, resources_here
from pydrbd.config.options import (
    TABLE,
    DiskOptions,
    GlobalOptions,
    Handlers,
    NetOptions,
    OptionGroup,
    PeerDeviceOptions,
    ResourceOptions,
    StartupOptions,
)
from pydrbd.config.optionspec import OptionSpec
from pydrbd.config.reader import DEFAULT_FILES, load, loads
from pydrbd.config.syntax import Place
from pydrbd.config.view import ResourceView, for_node, node_host, require_implemented, unimplemented

__all__ = [
    "DEFAULT_FILES",
    "TABLE",
    "Address",
    "Config",
    "Connection",
    "DeviceKind",
    "DeviceName",
    "DiskOptions",
    "Endpoint",
    "GlobalOptions",
    "Handlers",
    "Host",
    "MetaDisk",
    "MetaDiskKind",
    "NetOptions",
    "OptionGroup",
    "OptionSpec",
    "PeerDeviceOptions",
    "Place",
    "Resource",
    "ResourceOptions",
    "ResourceView",
    "Sections",
    "StartupOptions",
    "Volume",
    "dump",
    "for_node",
    "load",
    "loads",
    "node_host",
    "require_implemented",
    "resolve",
    "resources_here",
    "unimplemented",
]
