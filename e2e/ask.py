"""Sends the JSON from standard input to a URL, and prints the response.

It replaces `curl` on machines that lack it.
"""

import sys
import time
import urllib.error
import urllib.request

REFUSED_SECONDS = 10.0
"""Time in seconds during which a refused connection is tried again. kube-proxy may need a second
after a pod is Ready before it routes to the pod."""

request = urllib.request.Request(
    sys.argv[1], data=sys.stdin.buffer.read(), headers={"Content-Type": "application/json"}
)
started = time.monotonic()
while True:
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            sys.stdout.buffer.write(response.read())
        break
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code} {error.reason}: {error.read().decode()}")
    except urllib.error.URLError as error:
        refused = isinstance(error.reason, ConnectionRefusedError)
        if not refused or time.monotonic() - started > REFUSED_SECONDS:
            sys.exit(f"{sys.argv[1]}: {error.reason}")
        time.sleep(0.2)
