"""Find secrets in texts: by a token's form, by the name before a value, by a command's option.

Each search takes time in proportion to the text, whatever the text is: masking runs on the event
loop. Quantifiers are therefore possessive or bounded, and no search looks twice at a long value.
"""

from __future__ import annotations

import re

MASK = "[secret]"

_SHAPES = re.compile(
    r"""
    (?<![\w-])sk-(?:[\w-]*\*[\w*-]*                       # OpenAI keys that Codex shortened
        | (?:proj|ant|or|svcacct|admin)-[\w-]{8,}         # OpenAI, Anthropic, OpenRouter
        | [A-Za-z0-9]{10,}[\w-]*
        | (?=[\w-]*(?:[A-Z]|\d[a-z]))[\w-]{16,})
    | (?<![\w-])eyJ[\w-]{8,}+(?:\.eyJ[\w-]*+(?:\.[\w-]*+)?|(?:\.[\w-]*+){2,4})  # JWT
    | \b(?:gh[pousr]_|github_pat_|xai-|gsk_)[A-Za-z0-9]{16,}\w*
    | \b(?:hf_[A-Za-z0-9]{16,}|npm_[A-Za-z0-9]{30,})(?!\w)
    | \b(?:glpat-|glrt-|gldt-|xox[abeprs]-|xapp-|ya29\.|pypi-Ag|dckr_pat_|nvapi-|hvs\.)[\w-]{10,}
    | \b(?:shp(?:at|ss|ca|pa)_|dop_v1_|doo_v1_|lin_api_|figd_|glsa_|r8_|pplx-|tvly-|sbp_|secret_
        |ATATT3|NRAK-|PMAK-|EAAC|whsec_|rubygems_|pscale_tkn_|sntrys_|nfp_)[A-Za-z0-9+/=_-]{16,}
    | \b(?:[rs]k_(?:live|test)_|AIza)[\w-]{10,}
    | \bA(?:KIA|SIA)[A-Z0-9]{12,}\b
    | \bSG\.[\w-]{16,64}\.[\w-]{16,64}                    # SendGrid
    | \b(?:SK|key-)[0-9a-f]{32}\b                         # Twilio, Mailgun
    | (?<!\d)\d{8,10}:AA[\w-]{32,34}(?![\w-])                  # Telegram bots
    | (?<=hooks\.slack\.com/)(?:services|workflows|triggers)/[\w/-]{10,}
    | (?<=/api/webhooks/)\d{10,}/[\w-]{20,}               # Discord
    | \bAGE-SECRET-KEY-1[A-Z0-9]{10,}
    | (?<=://)[^/\s:@?\#"'<>\\]*+:[^/\s?\#"'<>\\]*(?=@)      # URLs with credentials
    | (?<=://)(?=[^\d/@]{0,64}\d)[A-Za-z0-9]{20,256}+(?=@)    # URLs with a token only
    | -----BEGIN\ [A-Z ]{0,30}PRIVATE\ KEY(?:\ BLOCK)?-----
        (?:(?:["'+,\ \t]*+(?:[\r\n]|\\+[rn]))++["'+,\ \t]*+
            (?:[\w-]{1,20}:\ [^\n\\]{0,200}+|[A-Za-z0-9+/=]++(?=\s|\\|["']|-|\Z))
            |\ [A-Za-z0-9+/=]{32,}+)++
        (?:\s|\\+[rn]|["'+,])*+(?:-----END[A-Z ]{0,40}-----)?
    """,
    re.VERBOSE,
)
"""Tokens whose form shows that they are secrets."""


_HEADERS = re.compile(
    r"""
    (?P<header>\b(?:proxy-)?authorization\\*["'`]?[ \t]{0,3}[:=][ \t]{0,3}\\*["'`]?)
        (?P<scheme>(?:basic|bearer|token|api-?(?:key|token)|digest|negotiate|ntlm|bot|key|oauth|jwt
            |splunk|sso-key|aws4-hmac-sha256)\ {1,3})?
        (?P<of_header>[^\s"'`,;<>()\[\]{}\\]++)
    | (?P<bearer>\bbearer[ \t]{1,3}(?P<of_bearer>[\w.~+/=-]{8,}+))
    | (?P<cookie>\b(?:set-)?cookie\\*["'`]?:[ \t]{0,3}\\*["'`]?)(?P<of_cookie>[^\r\n"'`\\]++)
    | (?P<netrc>\bmachine\s{1,8}\S{1,200}\s{1,8}login\s{1,8}\S{1,200}\s{1,8}password\s{1,8})\S++
    """,
    re.VERBOSE | re.IGNORECASE,
)

_NAMES = re.compile(
    r"""
    (?<![\w-])(?P<option>--?)?
    (?=[\w-]*?(?:key|token|secret|pass|pwd|cred|auth|sig|bearer))
    (?P<name>\w[\w-]*+)
    (?P<gap>\\*["'`]?[ \t]{0,3}(?:=>|:=|[:=])[ \t]{0,3}
        | (?(option)\\*["'],\s{0,3}|(?!))
        | [ \t]{1,3})
    (?P<quote>(?P<escaped>\\+)?["'`])?
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""A name that may be a secret's, and all that separates it from its value."""

_ELEMENTS = re.compile(
    r"<(?P<name>[\w:.-]{1,80}+)>(?P<value>[^<>\s]++)(?=</(?P=name)>)", re.IGNORECASE
)
_COMMANDS = re.compile(
    r"(?<![\w-])(?P<program>curl|wget|https?|mysql\w*|mariadb[\w-]*|sshpass|redis-cli|docker|podman)"
    r"(?=\s)(?:[^\n;|&]|&(?!&)|[;|](?!\s))*+"
)
_VALUE = r"""(?P<value>(?:[^\s"'\\:]++:)?+(?:\\?"[^"\\\n]++|\\?'[^'\\\n]++|[^\s"'\\]++))"""
_CREDENTIALS = r"\s(?P<option>-u ?|-U ?|-a |--user[ =]|--proxy-user[ =]|--auth[ =])" + _VALUE
_OPTIONS = {
    "curl": re.compile(_CREDENTIALS),
    "http": re.compile(_CREDENTIALS),
    "mysq": re.compile(r"\s(?P<option>-p)" + _VALUE),
    "sshp": re.compile(r"\s(?P<option>-p ?)" + _VALUE),
    "redi": re.compile(r"\s(?P<option>-a )" + _VALUE),
    "dock": re.compile(r"(?<=login)[^\n]{0,200}?\s(?P<option>-p )" + _VALUE),
}
"""Short options with a secret, by the first four letters of the program."""
_LIKE = {"wget": "curl", "mari": "mysq", "podm": "dock"}

_SAMPLE = 120
"""Characters of a value that decide whether it is masked."""

_UNQUOTED = re.compile(r"[^\s\"'`;&|\\]++")
_QUOTED = {
    False: {quote: re.compile(rf"(?:[^{quote}\\\r\n]|\\.)*+") for quote in "\"'`"},
    True: {quote: re.compile(rf"(?:[^{quote}\\\r\n]|\\(?![{quote}\\]))*+") for quote in "\"'`"},
}
"""The rest of a quoted value; True if the quote itself is escaped, as in JSON within JSON."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_GLUED = re.compile(r"(password|passwd|passphrase|secret|token|apikey|accesskey|privatekey)$")
_QUALIFIERS = _words(
    "v prod production dev development staging live test old new current default value raw plain"
    " text b base json main primary secondary backup"
)
"""Words behind a secret's name that do not change what it names: API_KEY_PROD, token_value."""
_PASSWORDS = _words("password passwd passphrase passcode pwd passwort sshpass")
_SECRETS = _words("secret token bearer apikey credential credentials accesskey privatekey")
_PASS_OWNERS = _words("db user smtp mysql ftp admin root http proxy sudo ssh mail pg")
_KEY_OWNERS = _words("api access secret private account shared subscription license")
_HARMLESS_KEYS = _words(
    "cache primary foreign public sort partition index row group object map hot unique composite"
    " idempotency dedup lookup dict hash routing registry arrow enter shift ctrl alt"
)
_HARMLESS_TOKENS = _words(
    "page next previous continuation cursor sync eos bos pad unk sep cls mask special stop start"
    " end unexpected expected first last max min lexer parser"
)

_WORDS = _words(
    "a an and are as at be been but by can cannot do does for from has have if in into is it its"
    " may must no not of off on only or option options flag argument set so that the then this to"
    " use used using value values via was were when which will with without you your"
    " api auth authentication authorization basic bearer credential credentials digest header"
    " headers key keys login name passwd password passwords pwd scheme secret secrets string str"
    " token tokens type user username user_name uuid bytes text"
    " none null nil undefined true false yes any int integer number bool boolean float object"
    " array optional required enabled disabled default example placeholder changeme redacted"
    " hidden masked missing empty invalid expired unknown unset based random generated prompt"
    " stdin env environment local localhost production development staging testing test main"
    " here there rotation manager support management service provider server client request"
    " sha1 sha256 sha512 md5 oauth oauth2 bcrypt argon2 argon2id aes128 aes256 base64 utf8 utf-8"
    " rs256 hs256 es256 ed25519 http2"
)
"""Values that are words about a secret, not a secret."""

_NO_SECRET = re.compile(
    r"""
    \$[\w{(].* | \$ | %\w+%?.* | %\(.* | [<{\[(].* | [*.•…x]+ | [*.•…]+.{0,8} | \[secret\].*
    | [A-Za-z]:\\.* | (?:file|https?|secretsmanager|op|vault|ssm):.* | @\S*/.*
    | (?:process|os|self|this|config|settings|env|ctx|props|args|req|request)\.\w.*
    | (?:id|type|src|env)=.*
    """,
    re.VERBOSE,
)
"""Variables, placeholders, URLs and expressions."""
_PATH = re.compile(r"(?:~|\.{1,2})?/[\w.@~/-]*+")
_FILE = re.compile(r"[\w./@~-]*\.[a-z]\w{0,4}")
_NUMBER = re.compile(r"[-+]?[\d.,_:]+")
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}(?::\d+)?")
_TIME_OR_VERSION = re.compile(r"v?\d+(?:\.\d+)+[\w.-]*|\d{4}-\d\d-\d\d[T\d:.Z+-]*")
_IDENTIFIER = re.compile(r"(?:[A-Za-z]++(?:[._:/@-](?=[A-Za-z]))?+)++[._-]?\d{0,2}")
_CODE = re.compile(r"[\w.]*\w[(\[].*")
_HUMP = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]")


def mask_patterns(text: str) -> str:
    """Return *text* with [secret] in place of all secrets that these patterns find."""
    text = _SHAPES.sub(MASK, text)
    text = _HEADERS.sub(_mask_header, text)
    text = _ELEMENTS.sub(_mask_element, text)
    return _COMMANDS.sub(_mask_command, _mask_named(text))


def _mask_header(found: re.Match[str]) -> str:
    whole, value = found[0], found["of_header"]
    if found["header"] is not None:
        word = value.rstrip(".:,").lower()
        scheme = (found["scheme"] or "").strip().lower()
        if word in _WORDS or _NO_SECRET.fullmatch(value[:_SAMPLE]):
            return whole
        if not scheme and (_IDENTIFIER.fullmatch(value[:_SAMPLE]) or len(value) < 8):
            return whole
        return found["header"] + MASK
    if found["bearer"] is not None:
        return MASK if _looks_random(found["of_bearer"][:_SAMPLE], 8) else whole
    if found["cookie"] is not None:
        pairs = found["of_cookie"][: 20 * _SAMPLE]
        values = (pair.partition("=")[2] for pair in pairs.split(";"))
        is_secret = any(_looks_random(value[:_SAMPLE], 12) for value in values)
        return found["cookie"] + MASK if is_secret else whole
    # "machine learning login page password field" is not a line of .netrc.
    return found["netrc"] + MASK if re.search(r"[.\n]", found["netrc"]) else whole


def _mask_element(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    rank = rank_of(name.rpartition(":")[2])
    if not rank or not is_secret(value[:_SAMPLE], rank, quoted=True, given=False):
        return found[0]
    return f"<{name}>{MASK}"


def _mask_command(found: re.Match[str]) -> str:
    program = found["program"][:4]
    options = _OPTIONS[_LIKE.get(program, program)]
    return options.sub(_mask_option, found[0])


def _mask_option(found: re.Match[str]) -> str:
    value = found["value"].lstrip("\\\"'")
    needs_user = found["option"].strip(" =") not in ("-p",) and not found[0].startswith(" -a ")
    if (
        (needs_user and ":" not in value)
        or value.replace(":", "").isdigit()
        or MASK in value
        or value.startswith(("$", "<"))
    ):
        return found[0]
    return found[0][: len(found[0]) - len(value)] + MASK


def _mask_named(text: str) -> str:
    parts: list[str] = []
    done = 0
    for found in _NAMES.finditer(text):
        if found.start() < done:
            continue  # A part of a value that is masked.
        rank = rank_of(found["name"])
        if not rank:
            continue
        is_apart = found["option"] is None and found["gap"].isspace()
        if is_apart and not (found["name"].isupper() and "_" in found["name"]):
            continue  # Words; only a variable's name is followed by its value: ENV API_KEY ...
        quote, at = found["quote"], found.end()
        pattern = _UNQUOTED if quote is None else _QUOTED[bool(found["escaped"])][quote[-1]]
        sample = pattern.match(text, at, at + _SAMPLE)
        if sample is None or not sample[0]:
            continue
        value = sample[0] if quote is not None else _trimmed(sample[0])
        if is_apart and (not _looks_random(value, 12) or _FILE.fullmatch(value)):
            continue
        if not is_secret(
            value,
            rank,
            quoted=quote is not None,
            given=found["option"] is not None or _is_setting(text, found, at + len(value), rank),
        ):
            continue
        end = at + len(value)
        if len(sample[0]) == len(value) and (whole := pattern.match(text, at)) is not None:
            end = at + len(whole[0] if quote is not None else _trimmed(whole[0]))
        parts += text[done:at], MASK
        done = end
    return "".join([*parts, text[done:]]) if parts else text


def _trimmed(value: str) -> str:
    return value.rstrip(")]}>,.:") or value


def _is_setting(text: str, found: re.Match[str], end: int, rank: int) -> bool:
    """Return True if the name and its value are a variable, a header or a part of a DSN."""
    name, gap = found["name"], found["gap"].strip("\\\"'`")
    if name.lower().startswith("x-") or name == "_auth":
        return True
    if found["quote"] is None and gap == "=" and text[end : end + 1] in ("", *" \t\r\n;&|\"'\\"):
        before = text[max(found.start() - 1, 0) : found.start()]
        return (
            before == ";"
            or name.isupper()
            or name.startswith("_")
            or (rank == 3 and before in ("", *" \t\n;&?\"'"))
        )
    return name.isupper() and "_" in name and (gap == "=" or rank == 3)


def rank_of(name: str) -> int:
    """Return how surely *name* names a secret: 3 a password, 2 a secret, 1 a key, 0 none."""
    if len(name) > _SAMPLE or name in ("PWD", "OLDPWD"):
        return 0
    parts = [part.lower() for part in _PARTS.findall(name)]
    while len(parts) > 1 and parts[-1] in _QUALIFIERS:
        parts.pop()
    if not parts:
        return 0
    last, owner = parts[-1], parts[-2] if len(parts) > 1 else ""
    if last in _PASSWORDS or (last == "pass" and (owner in _PASS_OWNERS or name.isupper())):
        return 3
    if last in _SECRETS or last == "auth":
        harmless = (last == "token" and owner in _HARMLESS_TOKENS) or (
            last == "auth" and (name != "_auth" and not name.lower().endswith("x-auth"))
        )
        return 0 if harmless else 2
    if last in ("key", "signature", "sig"):
        if last != "key":
            return 1 if owner in ("amz", "goog", "") and (owner or name == "sig") else 0
        if owner in _KEY_OWNERS or "secret" in parts:
            return 2
        return 1 if owner and owner not in _HARMLESS_KEYS else 0
    if glued := _GLUED.search(last):
        return 3 if glued[1].startswith("pass") else 2
    return 0


def is_secret(value: str, rank: int, *, quoted: bool, given: bool) -> bool:
    """Return True if *value* is a secret, where its name has this rank and is not 0.

    Args:
        value: The value, or its beginning.
        rank: How surely its name names a secret; see `rank_of`.
        quoted: True if the value is quoted.
        given: True if this is the value itself, never an expression that returns it.
    """
    if value.lower().strip(".:,") in _WORDS or _NO_SECRET.fullmatch(value) or _is_path(value):
        return False
    if _NUMBER.fullmatch(value):
        return rank == 3 and value.isdigit() and len(value) >= 6
    if given and rank > 1:
        return len(value) >= 3
    if re.search(r"\s", value) or (not quoted and _CODE.fullmatch(value)):
        return False
    if rank == 3 and len(value) >= 6 and re.search(r"[\d!@#$%^&*+=~]", value):
        return True
    return _looks_random(value, 8 if rank > 1 else 12)


def is_ordinary(value: str) -> bool:
    """Return True if *value* is a word, a number, a path, a host or a URL."""
    return (
        value.lower() in _WORDS
        or _NO_SECRET.fullmatch(value[:_SAMPLE]) is not None
        or _is_path(value)
        or _NUMBER.fullmatch(value) is not None
        or _HOST.fullmatch(value) is not None
    )


def _looks_random(value: str, least: int) -> bool:
    if len(value) < least or _NO_SECRET.fullmatch(value) or _is_path(value):
        return False
    if _TIME_OR_VERSION.fullmatch(value):
        return False
    if re.search(r"\d", value) and re.search(r"[A-Za-z]", value):
        return not _IDENTIFIER.fullmatch(value)
    return len(value) >= 16 and 5 * len(_HUMP.findall(value)) >= len(value)


def _is_path(value: str) -> bool:
    """Return True if *value* is a path; a key in base64 may begin with a slash too."""
    if _PATH.fullmatch(value) is None:
        return False
    return 8 * len(_HUMP.findall(value)) < len(value)
