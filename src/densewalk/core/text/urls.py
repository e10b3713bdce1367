"""Addresses without what gives access: nobody's token belongs in a record, a log line or a table."""

import re
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

# names of a query's parts that hold a token, a signature or who is asking
SECRET = re.compile(
    r"token|secret|passw|pwd|signature|credential|apikey|api[_-]key|access[_-]?key|authkey|private[_-]?key|key-pair-id|session"
    r"|^(sig|key|auth|authorization|policy|jwt|code|sid|user|username|login|hmac|__gda__|x-amz-.*|x-goog-.*|awsaccesskeyid)$",
    re.IGNORECASE,
)
PARAMETER = re.compile(r";([^;=/]*)=[^;/]*")  # of a path: /file;name=value
LONG = 20  # characters of a part without a value that is taken for a token
ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]*[^\s'\"<>:.,;)]", re.IGNORECASE)


def without_secrets(url: str) -> str:
    """The address without user, password and the values of secret parts; one without any comes back as it is."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # no address: a password with / or # in it reads as a host with a strange port
        scheme, mark, rest = url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if mark else url
    host = parts.netloc.rpartition("@")[2]
    path, query, fragment = PARAMETER.sub(_kept_parameter, parts.path), _stripped(parts.query), _stripped(parts.fragment)
    if (host, path, query, fragment) == (parts.netloc, parts.path, parts.query, parts.fragment):
        return url
    return urlunsplit((parts.scheme, host, path, query, fragment))


def redacted(text: str) -> str:
    """A text in which every address is without secrets."""
    return ADDRESS.sub(lambda found: without_secrets(found[0]), text)


def _kept_parameter(found: re.Match[str]) -> str:
    """A parameter of a path, unless it is secret by its name."""
    return "" if SECRET.search(found[1]) else found[0]


def _stripped(query: str) -> str:
    """A query without the parts that are secret by their names, or are nothing but a token; unchanged if it has none."""
    pairs = parse_qsl(query, keep_blank_values=True)
    kept = [(name, value) for name, value in pairs if not SECRET.search(name) and (value or len(name) < LONG)]
    return query if len(kept) == len(pairs) else urlencode(kept, quote_via=quote)
