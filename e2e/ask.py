"""POST the JSON of standard input to a URL and print the answer: `curl` for machines without it."""

import sys
import urllib.error
import urllib.request

request = urllib.request.Request(
    sys.argv[1], data=sys.stdin.buffer.read(), headers={"Content-Type": "application/json"}
)
try:
    with urllib.request.urlopen(request, timeout=120) as response:
        sys.stdout.buffer.write(response.read())
except urllib.error.HTTPError as error:
    sys.exit(f"{error.code} {error.reason}: {error.read().decode()}")
