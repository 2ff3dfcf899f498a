"""Ask a service for what a stranger must not get: `stranger.py http://HOST:PORT`."""

import sys
import urllib.error
import urllib.request

EXPECTED = {("POST", "/api/webhooks/amo"): 401, ("POST", "/api/webhooks/amo/guessed"): 401}
EXPECTED |= {("GET", path): 404 for path in ("/readyz", "/livez", "/keyring", "/metrics")}


def status(method: str, url: str) -> int:
    """Return what a request without credentials is answered."""
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    answers = {asked: status(asked[0], sys.argv[1] + asked[1]) for asked in EXPECTED}
    for (method, path), answer in answers.items():
        print(method, path, answer)
    sys.exit(0 if answers == EXPECTED else 1)
