"""`python -m posttrain.core.ready URL`: whether a service can work, as an exit status for a container's HEALTHCHECK.

0 when its /readyz answers 200, 1 with a line on standard error when it does not, 2 for an address that is none. Run
every few seconds for as long as a container lives, so it imports nothing but the standard library. It takes no notice
of proxies: what it asks is in its own container.
"""

import argparse
import http.client
import math
import sys
from urllib.parse import urlsplit

SECONDS = 5.0


def why_not_ready(url: str, seconds: float = SECONDS) -> str | None:
    """Why the service at `url` cannot work; None: it can. ValueError for an address that is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is no address; give one as in http://127.0.0.1:8001")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=seconds)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/readyz")
        status = connection.getresponse().status
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if status == 200 else f"status {status}"


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser("python -m posttrain.core.ready", description="Whether a service can work.")
    parser.add_argument("url", help="address of the service, as in http://127.0.0.1:8001")
    parser.add_argument("--timeout", type=_seconds, default=SECONDS, help="seconds to wait for its answer")
    given = parser.parse_args(arguments)
    try:
        reason = why_not_ready(given.url, given.timeout)
    except ValueError as error:
        parser.error(str(error))
    if reason:
        print(f"{given.url} is not ready: {reason}", file=sys.stderr)
    return 1 if reason else 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
