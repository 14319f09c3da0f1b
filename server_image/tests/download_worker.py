"""Downloads a model as a server does, and prints one line of JSON with the result.

It needs the environment variables of a model server. The arguments are the repository and the
pauses in seconds between attempts, as JSON.
"""

import json
import os
import sys

from llmservice_server import download
from llmservice_server.failures import Reason, classify, facts_of
from llmservice_server.settings import ServerSettings
from llmservice_server.trust import trust_bundle


def main() -> None:
    repository, pauses = sys.argv[1:]
    if (bundle := ServerSettings.from_environment(os.environ).ca_bundle) is not None:
        trust_bundle(bundle, os.environ)
    download._PAUSES_SECONDS = tuple(json.loads(pauses))
    model = download.hub_model(repository, None, "auto", None, None)
    assert model is not None
    wanted = download.ModelDownload(model)
    try:
        wanted.look_up()
        wanted.fetch_configuration()
        wanted.choose_weights()
        wanted.fetch_weights()
    except Exception as error:
        failure = classify(facts_of(error), Reason.LOAD_FAILED)
        print(json.dumps({"reason": failure.reason, "message": failure.message}))
    else:
        print(json.dumps({"isFromCache": wanted.is_from_cache, "bytes": wanted.bytes_total}))


main()
