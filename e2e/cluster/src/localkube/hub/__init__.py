"""Adds the commands for the models of the tests and for the hub that serves them.

Each command imports its modules when it runs, so that the command line starts fast.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from localkube.cluster import Cluster
from localkube.errors import LocalkubeError


def register(subparsers: Any) -> None:
    models = subparsers.add_parser(
        "models", help="create the test models unless they are cached, and print their location"
    )
    models.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="print instead the greedy answers of transformers to the JSON list of prompts in FILE",
    )
    models.add_argument(
        "--model", metavar="ID", help="model of these answers (default: the first of the models)"
    )
    models.add_argument(
        "--tokens",
        type=_positive,
        default=32,
        help="length of these answers in tokens (default: %(default)s)",
    )
    models.add_argument(
        "--speculation",
        action="store_true",
        help="also make the draft heads for the tiny Llama, and install the packages that some "
        "tests need and the images leave out",
    )
    models.set_defaults(run=_models)
    volume = models.add_subparsers(metavar="volume").add_parser(
        "volume", help="make the models readable in a namespace, as ORGANISATION/NAME on a claim"
    )
    volume.add_argument("namespace")
    volume.add_argument("claim")
    volume.set_defaults(run=_volume)

    commands = subparsers.add_parser(
        "hub", help="serve the test models like the Hugging Face Hub"
    ).add_subparsers(required=True, metavar="start|stop|url")
    start = commands.add_parser("start", help="start the hub, or start it again, and print its URL")
    start.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: serve the test models)"
    )
    start.add_argument(
        "--bytes-per-second", type=_positive, metavar="N", help="limit the speed of each download"
    )
    start.set_defaults(run=_start)
    stop = commands.add_parser("stop", help="stop the hub")
    stop.set_defaults(run=_stop)
    url = commands.add_parser("url", help="print the URL at which pods reach the hub")
    url.set_defaults(run=_url)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def _models(arguments: argparse.Namespace) -> int:
    from localkube.hub.models import build_models, read_greedy_reference, read_prompts
    from localkube.hub.packages import streamer_packages, suffix_packages
    from localkube.hub.speculation import build_heads

    models = build_models()
    if arguments.speculation:
        build_heads()
        suffix_packages()
        streamer_packages()
    if arguments.reference is None:
        print(json.dumps({repo_id: str(folder) for repo_id, folder in models.items()}, indent=1))
        return 0
    prompts = read_prompts(arguments.reference)
    repo_id = arguments.model or next(iter(models))
    if repo_id not in models:
        raise LocalkubeError(f"No test model {repo_id!r}: choose one of {', '.join(models)}.")
    print(json.dumps(read_greedy_reference(models[repo_id], prompts, arguments.tokens)))
    return 0


def _volume(arguments: argparse.Namespace) -> int:
    from localkube.hub.models import build_models, models_folder
    from localkube.hub.volume import apply_volume

    build_models()
    cluster = Cluster(arguments.name)
    apply_volume(cluster, arguments.namespace, arguments.claim, models_folder())
    return 0


def _start(arguments: argparse.Namespace) -> int:
    from localkube.hub import daemon
    from localkube.hub.models import build_models

    if arguments.config is None:
        settings = daemon.default_settings(build_models())
    else:
        settings = daemon.read_settings(arguments.config)
    if arguments.bytes_per_second is not None:
        settings = settings.model_copy(update={"bytes_per_second": arguments.bytes_per_second})
    print(daemon.start(Cluster(arguments.name), settings))
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from localkube.hub import daemon

    daemon.stop(Cluster(arguments.name))
    return 0


def _url(arguments: argparse.Namespace) -> int:
    from localkube.hub import daemon

    print(daemon.url(Cluster(arguments.name)))
    return 0
