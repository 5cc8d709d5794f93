"""`python -m posttrain.core` is the `posttrain` command."""

from posttrain.core.cli import main

main()
