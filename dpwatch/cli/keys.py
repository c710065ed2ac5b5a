"""`dpwatch keys`: creates the keys by which hubs of several hosts authenticate each other."""

from __future__ import annotations

import argparse

from dpwatch.argument_parser import Commands
from dpwatch.cli.errors import FINE, NOTHING_TO_SHOW, CommandError

EXAMPLES = """\
examples:
  dpwatch keys                 create keys, or print where they are
  dpwatch keys --show          print their fingerprints, to compare between hosts
  DPWATCH_KEYS=/secrets/dpwatch dpwatch keys
                               in another folder

Every host of a run needs the same keys. A shared home directory suffices; otherwise copy the
folder (scp -pr) or mount it as a secret. Without keys, hosts exchange nothing.
"""


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "keys",
        help="create the keys that join the hosts of a run",
        description="Creates the keys by which the hubs of a run's hosts authenticate each other.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--show", action="store_true", help="only print the keys that exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Creates keys if there are none, and prints where they are; never prints secrets."""
    from dpwatch.runtime.curve_keys import KeysError, keys_path, load_keys, make_keys

    folder = keys_path()
    try:
        keys = load_keys(folder)
        if keys is None and options.show:
            print(f"no keys in {folder}: create them with dpwatch keys")
            return NOTHING_TO_SHOW
        made = "" if keys else "made "
        keys = keys or make_keys(folder)
    except KeysError as error:
        raise CommandError(str(error)) from None
    print(f"{made}keys in {folder}")
    print(f"  head    {keys.head.fingerprint}")
    print(f"  client  {keys.client.fingerprint}")
    if made:
        print("Every host of a run needs this folder: share it, or copy it with scp -pr.")
    return FINE
