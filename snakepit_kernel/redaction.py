"""Secrets, left out of what is written down and shown.

Nobody can know all secrets by their looks. What is known are the ways in which programs are given
them: an option or a variable whose name speaks of a secret, a password in a URL, a header, and keys
that are long and look random. When in doubt, ``***`` stands there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

HIDDEN: Final = "***"

_PARTS: Final = (
    *("passwd", "password", "passphrase", "passwort", "secret", "credential", "bearer"),
    *("apikey", "api_key", "api-key", "accesskey", "privatekey", "authtoken", "accesstoken"),
)
"""What speaks of secrets anywhere in a name."""

_WORDS: Final = frozenset({"pwd", "pass", "token", "auth", "authorization", "cookie", "psk", "jwt"})
"""What does so as a word of it: neither ``tokenizer`` nor ``bypass`` does."""

_LAST: Final = frozenset(
    {"key", "api", "sig", "signature", "pin", "storepass", "keypass", "passin", "passout", "pw"}
)
"""What does so as its last word: a ``key_file`` is none."""

_PLACES: Final = frozenset({"file", "path", "dir", "directory", "folder"})
"""Last words of a name that says where the secret is."""

_VALUE_BESIDE: Final = {
    "sshpass": "p",
    "curl": "uU",
    "redis-cli": "a",
    "zip": "P",
    "unzip": "P",
    "login": "p",  # docker, podman, az, oc
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
    **dict.fromkeys(("ssh", "scp", "sftp", "rsync"), ""),  # behind sshpass
}
"""Options of one letter with a secret as their value, by the program that has them."""

_VALUE_WITHIN: Final = {
    **dict.fromkeys(("mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlcheck"), "p"),
    **dict.fromkeys(("mariadb", "mariadb-dump", "mariadb-admin", "mysqlshow", "mysqlpump"), "p"),
    **dict.fromkeys(("7z", "7za", "7zr", "rar", "unrar"), "p"),
}
"""Those that have it only in the same word: ``-pVALUE``."""

_QUOTED = r"[a-zA-Z]{0,2}\"(?:[^\"\\]|\\.)*(?:\"|$)|[a-zA-Z]{0,2}'(?:[^'\\]|\\.)*(?:'|$)"
_NAME = re.compile(r"(?<![\w.-])(-{0,2}[\w.-]+)([\"']?\s*(?:=>|[=:])\s*|\s+(?=[^\s-]))")
_VALUE = re.compile(
    rf"(?:(?:bearer|basic|digest|token)\s+)?(?:{_QUOTED}|[^\s,;)}}\]&|]+)",
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+|['\"]")
_WORD_OF_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]")
_WHOLE_NAME = re.compile(r"-{0,2}[\w.-]+")

_FORMS: Final = (
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
"""What looks like a secret wherever it stands."""

_RUN = re.compile(r"[A-Za-z0-9+/_~=-]{20,}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_CHANGE = re.compile(r"(?:[a-z](?=[A-Z0-9])|[A-Z](?=[0-9])|[0-9](?=[A-Za-z]))")

_MIN_RANDOM: Final = 20
"""Characters from which on one can tell what is random from what has a meaning."""

_RANDOM, _RANDOM_PIECE, _PIECE = 0.2, 0.15, 16
"""The share of characters behind which one of another kind stands, in all of a text and in a piece
without a hyphen of so many characters. Random ones have 0.3 to 0.5."""


def redacted(text: str) -> str:
    """Return a text with ``***`` in the place of what looks like a secret."""
    text = _without_named(text)
    for pattern, shown in _FORMS:
        text = pattern.sub(shown, text)
    return _RUN.sub(_without_random, text)


def redacted_command(arguments: Sequence[str]) -> str:
    """Return a command on one line, with ``***`` in the place of what looks like a secret.

    Parameters
    ----------
    arguments
        The program and its arguments. It is shown as it is.
    """
    words = _Words()
    shown = []
    for number, argument in enumerate(arguments):
        if any(map(str.isspace, argument)) and not words.is_next_secret:  # a script, or a header
            shown.append(_WORD.sub(_Words().replace, redacted(_without_named_whole(argument))))
        else:
            shown.append(words.shown(argument, is_program=number == 0))
    return " ".join(shown)


class _Words:
    """Goes through the words of one command, and knows those that are secrets by their place."""

    def __init__(self) -> None:
        self._beside = self._within = ""
        self.is_next_secret = False

    def shown(self, word: str, *, is_program: bool = False) -> str:
        """Return a word as it may be shown."""
        if self.is_next_secret:
            self.is_next_secret = False
            if not word.startswith("-"):  # else an option that has no value
                return HIDDEN
        program = word.rpartition("/")[2]
        if program in _VALUE_BESIDE or program in _VALUE_WITHIN:
            self._beside = _VALUE_BESIDE.get(program, "")
            self._within = _VALUE_WITHIN.get(program, "")
        if is_program:
            return word
        if word.startswith("-") and "=" not in word:
            return self._option(word)
        return redacted(_without_named_whole(word))

    def replace(self, match: re.Match[str]) -> str:
        """Return a word of a script as it may be shown."""
        return self.shown(match[0])

    def _option(self, word: str) -> str:
        letters = word[1:]
        if letters[:1] in tuple(self._beside + self._within) and len(letters) > 1:
            return word[:2] + HIDDEN
        is_cluster = letters.isalpha() and len(letters) <= 4
        self.is_next_secret = (is_cluster and letters[-1] in self._beside) or (
            not word.startswith("--no-") and _speaks_of_secrets(word)
        )
        return redacted(word)


def _speaks_of_secrets(name: str) -> bool:
    """Whether what is called so is a secret."""
    words = [word.lower() for word in _WORD_OF_NAME.findall(name)]
    if not words or words[-1] in _PLACES:
        return False
    lower = name.lower()
    return (
        any(part in lower for part in _PARTS)
        or not _WORDS.isdisjoint(words)
        or words[-1] in _LAST
        or words[-1].endswith("token")
    )


def _without_named(text: str) -> str:
    """Leave out the values of what is called a secret, wherever that is in a text."""
    shown: list[str] = []
    at = 0
    while (name := _NAME.search(text, at)) is not None:
        shown.append(text[at : name.end()])
        at = name.end()
        is_option = not name[2].isspace() or name[1].startswith("-")
        if is_option and _speaks_of_secrets(name[1]) and (value := _VALUE.match(text, at)):
            shown.append(HIDDEN)
            at = value.end()
    return "".join([*shown, text[at:]])


def _without_named_whole(argument: str) -> str:
    """Leave out the rest of ``NAME=REST``, or of ``--env=NAME=REST``, if that is a secret."""
    begun, rest = "", argument
    while True:
        name, sign, rest = rest.partition("=")
        if not sign or not _WHOLE_NAME.fullmatch(name):
            return argument
        begun += name + sign
        if rest and _speaks_of_secrets(name):
            return begun + HIDDEN


def _without_random(match: re.Match[str]) -> str:
    run = match[0]
    if not run.startswith("/") and _looks_random(run):
        return HIDDEN
    parts = run.split("/")  # as of a path
    return "/".join(HIDDEN if _looks_random(part) else part for part in parts)


def _looks_random(text: str) -> bool:
    """Whether letters and digits follow each other as in no word, date or version."""
    text = _UUID.sub("", text).strip("=")
    if len(text) < _MIN_RANDOM or text.isalpha():
        return False
    piece = max(re.split("[_-]", text), key=len)
    return _changes(text) >= _RANDOM or (len(piece) >= _PIECE and _changes(piece) >= _RANDOM_PIECE)


def _changes(text: str) -> float:
    return len(_CHANGE.findall(text)) / len(text)
