"""Any text as LaTeX that says the same: no character of it is a command, and none stops a compiler."""

import unicodedata

_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "*": r"\textasteriskcentered{}",
    "[": "{[}",  # after a line's end it would begin an argument
    "]": "{]}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "°": r"\textdegree{}",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}
_LIGATURES = "-',"  # two of these become another sign
# Combining marks, and the commands that put them on a letter.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0328": "k",
}  # fmt: skip
_SMALL = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega
"""
_CAPITAL = "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
_GREEK = frozenset([*_SMALL.split(), *_CAPITAL.split()])


def latex_text(text: str) -> str:
    """Text on one line in which no character is a command.

    Accents are commands, which any compiler and encoding knows; of a letter that LaTeX has no fonts for by itself its
    number is left (`[U+4E2D]`).
    """
    spaced = "".join(c if c.isprintable() else " " for c in text.replace("\u00a0", " "))
    words = unicodedata.normalize("NFC", " ".join(spaced.split()))
    joined = zip(words, f"{words[1:]} ", strict=True) if words else ()
    return "".join(f"{one}{{}}" if one == after and one in _LIGATURES else _letter(one) for one, after in joined)


def _letter(letter: str) -> str:
    if letter in _SIGNS:
        return _SIGNS[letter]
    if letter.isascii():
        return letter
    return _accented(letter) or _greek(letter) or f"{{[}}U+{ord(letter):04X}{{]}}"


def _accented(letter: str) -> str | None:
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if not marks or not (base.isascii() and base.isalpha()) or any(mark not in _ACCENTS for mark in marks):
        return None
    for mark in marks:
        base = f"\\{_ACCENTS[mark]}{{{base}}}"
    return base


def _greek(letter: str) -> str | None:
    kind, _, name = unicodedata.name(letter, "").rpartition(" LETTER ")
    cased = name.replace("LAMDA", "LAMBDA").lower()
    cased = cased if kind == "GREEK SMALL" else cased.capitalize()
    return f"$\\{cased}$" if kind.startswith("GREEK ") and cased in _GREEK else None
