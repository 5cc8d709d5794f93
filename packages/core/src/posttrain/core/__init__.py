"""What every other package stands on.

Configuration, run directories, hashes, metrics, statistics, wire types, HTTP clients and the `posttrain` command.
"""

__version__ = "0.1.0"
