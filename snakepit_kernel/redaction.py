"""Redaction of secrets in text that is stored or shown.

Secrets cannot all be recognized by their form. Known are the ways in which they are passed to
programs: an option or a variable with the name of a secret, a password in a URL, a header, and long
keys that look random. When in doubt, ``***`` replaces the value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

HIDDEN: Final = "***"

_SECRET_PARTS: Final = (
    *("passwd", "password", "passphrase", "passwort", "secret", "credential", "bearer"),
    *("apikey", "api_key", "api-key", "accesskey", "privatekey", "authtoken", "accesstoken"),
)
"""Parts of a name that mean a secret anywhere in it."""

_SECRET_WORDS: Final = frozenset(
    {"pwd", "pass", "token", "auth", "authorization", "cookie", "psk", "jwt"}
)
"""Words of a name that mean a secret: neither ``tokenizer`` nor ``bypass`` does."""

_SECRET_LAST_WORDS: Final = frozenset(
    {"key", "api", "sig", "signature", "pin", "storepass", "keypass", "passin", "passout", "pw"}
)
"""Last words of a name that mean a secret: a ``key_file`` is none."""

_LOCATION_WORDS: Final = frozenset({"file", "path", "dir", "directory", "folder"})
"""Last words of a name that means the location of a secret."""

_VALUE_IN_NEXT_WORD: Final = {
    "sshpass": "p",
    "curl": "uU",
    "redis-cli": "a",
    "zip": "P",
    "unzip": "P",
    "login": "p",  # of docker, podman, az, oc
    "ldapsearch": "w",
    "ldapmodify": "w",
    "mosquitto_pub": "P",
    "mosquitto_sub": "P",
    "http": "a",
    "https": "a",
    "smbclient": "U",
    "mongo": "p",
    "mongosh": "p",
    "mongodump": "p",
    "influx": "t",
    **dict.fromkeys(("ssh", "scp", "sftp", "rsync"), ""),  # after sshpass
}
"""One-letter options with a secret as their value, by program; the value may be the next word."""

_VALUE_IN_SAME_WORD: Final = {
    **dict.fromkeys(("mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlcheck"), "p"),
    **dict.fromkeys(("mariadb", "mariadb-dump", "mariadb-admin", "mysqlshow", "mysqlpump"), "p"),
    **dict.fromkeys(("7z", "7za", "7zr", "rar", "unrar"), "p"),
}
"""One-letter options whose secret value is always in the same word: ``-pVALUE``."""

_QUOTED = r"[a-zA-Z]{0,2}\"(?:[^\"\\]|\\.)*(?:\"|$)|[a-zA-Z]{0,2}'(?:[^'\\]|\\.)*(?:'|$)"
_NAME = re.compile(r"(?<![\w.-])(-{0,2}[\w.-]+)([\"']?\s*(?:=>|[=:])\s*|\s+(?=[^\s-]))")
_VALUE = re.compile(
    rf"(?:(?:bearer|basic|digest|token)\s+)?(?:{_QUOTED}|[^\s,;)}}\]&|]+)",
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+|['\"]")
_WORD_OF_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]")
_WHOLE_NAME = re.compile(r"-{0,2}[\w.-]+")

_SECRET_PATTERNS: Final = (
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)(\S+)"), rf"\1{HIDDEN}"),
    (re.compile(r"(\w://[^/\s:@'\"]*:)[^/\s'\"]+(?=@)"), rf"\1{HIDDEN}"),
    (re.compile(r"(?<![\w./:@-])([\w.-]+:)[^\s/:@'\"]+(?=@[\w.-])"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"\b(?:AKIA|ASIA|AIza|gh[pousr]_|github_pat_|glpat-|sk[-_]|rk_live_|xox[abprs]-|hf_"
            r"|npm_|pypi-|eyJ)[\w.-]{8,}"
        ),
        HIDDEN,
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END[^\n]*|\Z)", re.DOTALL), HIDDEN),
)
"""Patterns of secrets anywhere in a text, with their replacements."""

_LONG_RUN = re.compile(r"[A-Za-z0-9+/_~-]{20,}={0,2}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_KIND_CHANGE = re.compile(r"(?:[a-z](?=[A-Z0-9])|[A-Z](?=[0-9])|[0-9](?=[A-Za-z]))")

_MIN_RANDOM: Final = 20
"""Minimum length at which random text can be told from meaningful text."""

_RANDOM, _RANDOM_PIECE, _PIECE = 0.2, 0.15, 16
"""Minimum share of characters that are followed by one of another kind, in a whole text and in a
piece without hyphens of at least that length. Random text has 0.3 to 0.5."""


def redacted(text: str) -> str:
    """Return a text in which ``***`` replaces what looks like a secret."""
    text = _redact_named(text)
    for pattern, shown in _SECRET_PATTERNS:
        text = pattern.sub(shown, text)
    return _LONG_RUN.sub(_redact_random, text)


def redacted_command(arguments: Sequence[str]) -> str:
    """Return a command on one line, in which ``***`` replaces what looks like a secret.

    Parameters
    ----------
    arguments
        The program, which is not redacted, and its arguments.
    """
    redactor = _CommandRedactor()
    shown = []
    for number, argument in enumerate(arguments):
        if any(map(str.isspace, argument)) and not redactor.is_next_secret:  # a script, or a header
            shown.append(
                _WORD.sub(_CommandRedactor().replace, redacted(_redact_assignment(argument)))
            )
        else:
            shown.append(redactor.shown(argument, is_program=number == 0))
    return " ".join(shown)


class _CommandRedactor:
    """Redacts the words of one command in order, including values that follow secret options."""

    def __init__(self) -> None:
        self._in_next_word = self._in_same_word = ""
        self.is_next_secret = False

    def shown(self, word: str, *, is_program: bool = False) -> str:
        """Return the redacted form of a word."""
        if self.is_next_secret:
            self.is_next_secret = False
            if not word.startswith("-"):  # otherwise the option had no value
                return HIDDEN
        program = word.rpartition("/")[2]
        if program in _VALUE_IN_NEXT_WORD or program in _VALUE_IN_SAME_WORD:
            self._in_next_word = _VALUE_IN_NEXT_WORD.get(program, "")
            self._in_same_word = _VALUE_IN_SAME_WORD.get(program, "")
        if is_program:
            return word
        if word.startswith("-") and "=" not in word:
            return self._option(word)
        return redacted(_redact_assignment(word))

    def replace(self, match: re.Match[str]) -> str:
        """Return the redacted form of a matched word of a script."""
        return self.shown(match[0])

    def _option(self, word: str) -> str:
        letters = word[1:]
        if letters[:1] in tuple(self._in_next_word + self._in_same_word) and len(letters) > 1:
            return word[:2] + HIDDEN
        is_cluster = letters.isalpha() and len(letters) <= 4
        self.is_next_secret = (is_cluster and letters[-1] in self._in_next_word) or (
            not word.startswith("--no-") and _is_secret_name(word)
        )
        return redacted(word)


def _is_secret_name(name: str) -> bool:
    """Whether a name is that of a secret."""
    words = [word.lower() for word in _WORD_OF_NAME.findall(name)]
    if not words or words[-1] in _LOCATION_WORDS:
        return False
    lower = name.lower()
    return (
        any(part in lower for part in _SECRET_PARTS)
        or not _SECRET_WORDS.isdisjoint(words)
        or words[-1] in _SECRET_LAST_WORDS
        or words[-1].endswith("token")
    )


def _redact_named(text: str) -> str:
    """Redact the values of secret names anywhere in a text."""
    shown: list[str] = []
    at = 0
    while (name := _NAME.search(text, at)) is not None:
        shown.append(text[at : name.end()])
        at = name.end()
        is_option = not name[2].isspace() or name[1].startswith("-")
        if is_option and _is_secret_name(name[1]) and (value := _VALUE.match(text, at)):
            shown.append(HIDDEN)
            at = value.end()
    return "".join([*shown, text[at:]])


def _redact_assignment(argument: str) -> str:
    """Redact the rest of ``NAME=REST``, or of ``--env=NAME=REST``, if the name is a secret's."""
    begun, rest = "", argument
    while True:
        name, sign, rest = rest.partition("=")
        if not sign or not _WHOLE_NAME.fullmatch(name):
            return argument
        begun += name + sign
        if rest and _is_secret_name(name):
            return begun + HIDDEN


def _redact_random(match: re.Match[str]) -> str:
    run = match[0]
    if not run.startswith("/") and _looks_random(run):
        return HIDDEN
    parts = run.split("/")  # it may be a path
    return "/".join(HIDDEN if _looks_random(part) else part for part in parts)


def _looks_random(text: str) -> bool:
    """Whether letters and digits alternate more than in words, dates and versions."""
    text = _UUID.sub("", text).strip("=")
    if len(text) < _MIN_RANDOM or text.isalpha():
        return False
    piece = max(re.split("[_-]", text), key=len)
    return _changes(text) >= _RANDOM or (len(piece) >= _PIECE and _changes(piece) >= _RANDOM_PIECE)


def _changes(text: str) -> float:
    return len(_KIND_CHANGE.findall(text)) / len(text)
