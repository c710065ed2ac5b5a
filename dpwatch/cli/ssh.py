"""`dpwatch ssh HOST…`: the dashboard over runs on other hosts, over OpenSSH."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import threading
from importlib import import_module

from dpwatch.argument_parser import Commands
from dpwatch.cli import settings, watch
from dpwatch.cli.errors import FINE, NOTHING_TO_SHOW, CommandError
from dpwatch.text_safety import printable

EXAMPLES = """\
examples:
  dpwatch ssh node1                       a host, named as for ssh
  dpwatch ssh ada@node1 ada@node2         several hosts in one screen
  dpwatch ssh --ssh 'ssh -p 2222' node1   options for ssh itself
  dpwatch ssh node1 --once --json         one snapshot, as JSON

The hosts need only sh and a watched run (dpwatch run, or dpwatch.watch()). For a host without a
run the GPUs are shown, if nvidia-smi is on its PATH or dpwatch is installed there.
"""


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "ssh",
        help="watch runs on other hosts, over OpenSSH",
        description="Shows the runs on other hosts, over the system's OpenSSH.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="a host, named as for ssh")
    parser.add_argument("--ssh", metavar="CMD", help="the ssh command and its options (ssh)")
    parser.add_argument(
        "--remote-dir", metavar="DIR", help="DPWATCH_RUNTIME_DIR on the hosts, if it is set there"
    )
    parser.add_argument(
        "--remote-dpwatch",
        metavar="PATH",
        help="dpwatch on the hosts, if it is not on the PATH (lists GPUs without nvidia-smi)",
    )
    parser.add_argument("--once", action="store_true", help="print one snapshot and exit")
    parser.add_argument("--json", action="store_true", help="with --once: as the summary object")
    watch.add_screen_options(parser, argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Connects, and opens the dashboard or prints once."""
    if options.json and not options.once:
        raise CommandError("--json goes with --once")
    from dpwatch.viewer.remote.ssh_hosts import SshError, SshHosts
    from dpwatch.viewer.watcher import Watcher

    if not options.once:
        watch.require_terminal()
        watch.screen_options(options)  # its errors are reported before connecting to any host
    found = settings.effective(options, settings.SSH)
    hosts = SshHosts(
        options.hosts,
        ssh=_ssh(found["ssh"].value),
        remote_dir=found["remote-dir"].value,
        remote_dpwatch=found["remote-dpwatch"].value,
    )
    if not options.once:  # while ssh connects, so that it is ready by then
        threading.Thread(target=import_module, args=("dpwatch.tui.app",), daemon=True).start()
    try:
        for line in hosts.connect(all_of_them=options.once):
            print(f"dpwatch: {printable(line)}", file=sys.stderr)
        if options.once:
            hosts.wait_for_gpus()
        watcher = Watcher(places=hosts.runs, user_notice=lambda: hosts.notice, gpus=hosts.gpus)
        try:
            if not options.once:
                waiting = f"Watching {', '.join(host.name for host in hosts.hosts)} over ssh."
                return watch.dashboard(watcher, options, waiting)
            if watch.tell(watcher, as_json=options.json):
                return FINE
            return _nothing(hosts.notice or "the runs on these hosts have not answered; try again")
        finally:
            watcher.close()
    except SshError as error:
        raise CommandError(str(error)) from None
    finally:
        hosts.close()


def _ssh(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CommandError(f"--ssh {command!r}: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise CommandError(f"there is no {words[0] if words else 'ssh'} here; install OpenSSH")
    return words


def _nothing(notice: str) -> int:
    for line in notice.splitlines():
        print(f"dpwatch: {printable(line)}", file=sys.stderr)
    return NOTHING_TO_SHOW
