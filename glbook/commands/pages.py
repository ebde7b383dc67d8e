"""The commands `glbook book`, `glbook pdf` and `glbook serve`."""

import argparse

from glbook.commands import short

__all__ = ["add_serve", "book", "pdf", "serve"]


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook serve` its arguments."""
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port of the local server (%(default)s)")


def book(options: argparse.Namespace) -> int:
    """`glbook book`: the exit status."""
    from glbook.book import build

    page = build()
    print(f"\nThe book is built: open {short(page)}, or see it with search at http://localhost:8000 by `make serve`.")
    return 0


def pdf(options: argparse.Namespace) -> int:
    """`glbook pdf`: the exit status."""
    from glbook.pdf import print_book

    print(f"\nThe book is printed: {short(print_book())}")
    return 0


def serve(options: argparse.Namespace) -> int:
    """`glbook serve`: the exit status."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from gl_core.training.records import project_root

    html = project_root() / "_build" / "html"
    if not (html / "index.html").is_file():
        raise ValueError(f"{short(html)}: there is no book yet; build it by `glbook book`")
    with ThreadingHTTPServer(("127.0.0.1", options.port), partial(SimpleHTTPRequestHandler, directory=html)) as server:
        print(f"The book is at http://localhost:{server.server_port} (Ctrl-C ends this).", flush=True)
        server.serve_forever()
    return 0
