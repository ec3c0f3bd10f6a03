"""`holdfast demo`: becomes `python -m sdk.demo`.

The server's rooms import none of its clients, and the demo is one: so it is another program, which this one
replaces itself with. It reads its flags itself; they are declared here for the help and the usage errors.
"""

from __future__ import annotations

import os
import sys

import click

from cluster.admin.output import json_option


@click.command()
@click.option("--question", metavar="TEXT", help="What to answer; default: one about this server.")
@click.option(
    "--documents", metavar="DIR", help="Folder of .md, .txt and .rst files; default: the project's own pages."
)
@click.option(
    "--nodes",
    type=click.Choice(["1", "3", "5"]),
    default="3",
    show_default=True,
    help="Nodes of a region; 1: a single server.",
)
@click.option(
    "--regions",
    type=click.Choice(["1", "2"]),
    help="Regions that it runs on; with one, no region dies.  [default: 2; of a single server: 1]",
)
@click.option(
    "--log",
    type=click.Choice(["embedded", "cassandra"]),
    default="embedded",
    show_default=True,
    help="The log between regions.",
)
@click.option("--approve", is_flag=True, help="Approve the agent's findings without asking.")
@click.option("--offline", is_flag=True, help="Use the stand-in for a model, even if OPENAI_API_KEY is set.")
@click.option("--keep", metavar="DIR", help="Leave data file, history, ledger and logs in this new folder.")
@json_option
def demo(
    question: str | None,
    documents: str | None,
    nodes: str,
    regions: str | None,
    log: str,
    approve: bool,
    offline: bool,
    keep: str | None,
    as_json: bool,
) -> None:
    """Show a research agent that survives the SIGKILL of its worker, its shard's leader, and its region.

    It answers a question from documents, on two local regions of three nodes, and moves between them.
    At the end: its report, the timeline of the run with the region that wrote each event, and whether
    any model call was paid twice; exit 0 only if everything held.

    Without OPENAI_API_KEY the model is a stand-in that ranks the documents' own sentences, and
    nothing leaves this machine. With it, passages of the documents go to OPENAI_BASE_URL
    (default: OpenAI's own), for the model OPENAI_MODEL.

    \b
    Examples:
      holdfast demo
      holdfast demo --documents ~/notes --question "What did we decide about retries?"
      holdfast demo --approve --json > result.json
      holdfast demo --log cassandra
      holdfast demo --regions 1
      holdfast demo --nodes 1
    """
    valued = {"--question": question, "--documents": documents, "--nodes": nodes, "--keep": keep}
    valued |= {"--regions": regions, "--log": log}
    flags = {"--approve": approve, "--offline": offline, "--json": as_json}
    arguments = [f"{name}={value}" for name, value in valued.items() if value is not None]
    arguments += [name for name, given in flags.items() if given]
    os.execv(sys.executable, [sys.executable, "-m", "sdk.demo", *arguments])  # noqa: S606 - our own program
