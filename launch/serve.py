"""Serves recommendations and searches over HTTP, and shows them on a page.

    python -m launch.serve --export=E [--port=8080]
    python -m launch.serve --workdir=W

E is a folder of launch.export, W one of a run of launch.train. Open http://127.0.0.1:8080 in a
browser, or POST questions in JSON to /recommend and /search (/openapi.json describes them). Only
this machine can reach the server, unless --host says otherwise. SIGTERM ends it once all that is in
flight is answered; SIGHUP, or POST /reload from this machine, reads E or W again.
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("export", None, "Folder of launch.export.")
    flags.DEFINE_string("workdir", None, "Folder of a run of launch.train, in place of --export.")
    flags.DEFINE_string(
        "retrieve_with", None, "Export whose index finds the items that --export ranks."
    )
    flags.DEFINE_string(
        "items", None, "File of items that joined after training, one a line, as JSON."
    )
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 is all of them.")
    flags.DEFINE_integer(
        "port", 8080, "Port to listen at; 0 takes a free one.", lower_bound=0, upper_bound=65535
    )
    flags.DEFINE_integer("max_batch", 16, "Requests of a batch.", lower_bound=1, upper_bound=1024)
    flags.DEFINE_float("max_wait_ms", 3.0, "For which a request waits for company.", lower_bound=0)
    flags.DEFINE_integer("max_waiting", 64, "Requests that may wait; more get 503.", lower_bound=1)
    flags.DEFINE_integer("max_k", 1000, "Items of an answer.", lower_bound=1)
    flags.DEFINE_integer("max_body", 2**20, "Bytes of a request.", lower_bound=1024)
    flags.DEFINE_integer("max_events", 10_000, "Clicks and searches of a request.", lower_bound=1)


def check_flags() -> None:
    if bool(flags.FLAGS.export) == bool(flags.FLAGS.workdir):
        raise UserError("expected --export=E or --workdir=W, found both or none; pass one of them")
    if flags.FLAGS.retrieve_with and not flags.FLAGS.export:
        raise UserError("expected --export=E with --retrieve_with, found none; pass it")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"expected the packages of the extra serve, found no {error.name}; run "
            "`pip install -e '.[serve]'`"
        ) from None


cli.begin(__name__, define_flags, check_flags)


from serving.exported import is_export
from serving.http_api import Bounds
from serving.micro_batches import Batching
from serving.models import open_model
from serving.requests import Limits
from serving.server import Place, serve


def main() -> None:
    values = flags.FLAGS
    folder = values.export or values.workdir
    if values.export and not is_export(folder):
        raise UserError(
            f"expected an export of launch.export in {folder}, found none; pass another --export, "
            "or a run as --workdir"
        )
    serve(
        lambda: open_model(folder, values.retrieve_with, values.items),
        Place(host=values.host, port=values.port),
        Batching(
            most=values.max_batch,
            wait_s=values.max_wait_ms / 1000,
            waiting=values.max_waiting,
        ),
        Bounds(
            body_bytes=values.max_body, k=values.max_k, question=Limits(events=values.max_events)
        ),
    )


if __name__ == "__main__":
    cli.run(main)
