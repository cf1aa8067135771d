"""Numbers in the words of European Portuguese."""

from __future__ import annotations

import re

from .._libraries import library

_PLAIN = r"\d{1,3}(?:[.\u00a0\u202f ]\d{3})+|\d+"  # 1.250, 10 000, 1998
_GROUPED = re.compile(r"\d{1,3}(?:[.\u00a0\u202f ]\d{3})+")
_CURRENCIES = {  # one, several, one hundredth, several hundredths
    "€": ("euro", "euros", "cêntimo", "cêntimos"),
    "EUR": ("euro", "euros", "cêntimo", "cêntimos"),
    "$": ("dólar", "dólares", "cêntimo", "cêntimos"),
    "US$": ("dólar", "dólares", "cêntimo", "cêntimos"),
    "R$": ("real", "reais", "centavo", "centavos"),
    "£": ("libra", "libras", "péni", "pence"),
}
_SIGN = "|".join(map(re.escape, sorted(_CURRENCIES, key=len, reverse=True)))
_NUMBER = re.compile(
    rf"""
    (?<![^\W_])(?<!\d[.,])
    (?: (?P<before>{_SIGN})[\u00a0\u202f ]? )?
    (?P<minus>[-\u2212](?=\d))?
    (?: (?P<hour>[01]?\d|2[0-4]) (?: [hH] (?P<minute>[0-5]\d)? | :(?P<clock>[0-5]\d) )
      | (?P<whole>{_PLAIN})
        (?: \.?(?P<ordinal>[ºª]) | (?P<point>[.,])(?P<decimals>\d+) )?
    )
    (?! [.,]?\d )
    (?: [\u00a0\u202f ]? (?P<after>%|{_SIGN}) (?!\w) )?
    """,
    re.VERBOSE,
)
_LONGEST = 15  # digits of a number; longer ones are read digit by digit
_PART = re.compile(r"(?<![^\W_])\d+(?![^\W_])")
_DIRECTLY = re.compile(r"\w|-\d")


def spell_numbers(text: str) -> str:
    """Writes numbers in digits as they are said in Portugal.

    Cardinals with the long scale (``mil milhões``), decimals, ordinals (``3.ª``), percentages, amounts of money, times
    of day. Numbers that begin with a zero or have more than 15 digits are read digit by digit. What cannot be known
    from the digits is not guessed: genders follow the masculine (``2`` is *dois*) but for ordinals marked ``ª``, and
    Roman numerals stay.

    Example:
        >>> spell_numbers("16 alunos, 1.250,5 km, a 3.ª vez")
        'dezasseis alunos, mil duzentos e cinquenta vírgula cinco km, a terceira vez'

    Raises:
        ConfigError: num2words is not installed.
    """
    if not re.search(r"\d", text):
        return text
    # What is no number, such as 2.0.1, is read part by part.
    return _PART.sub(lambda match: _cardinal(match.group()), _NUMBER.sub(_spelt, text))


def _spelt(match: re.Match[str]) -> str:
    part = match.groupdict()
    sign = part["before"] or part["after"]
    if part["hour"]:
        said = _time(int(part["hour"]), part["minute"] or part["clock"])
    elif part["ordinal"]:
        said = _ordinal(part["whole"], feminine=part["ordinal"] == "ª")
    elif sign in _CURRENCIES:
        said = _money(part["whole"], part["decimals"], _CURRENCIES[sign])
    else:
        said = _decimal(part["whole"], part["point"], part["decimals"])
    if part["minus"]:
        said = f"menos {said}"
    if part["after"] == "%":
        said = f"{said} por cento"
    # What follows directly is another word: 10km, 1998-2004.
    return f"{said} " if _DIRECTLY.match(match.string, match.end()) else said


def _cardinal(digits: str) -> str:
    digits = re.sub(r"\D", "", digits) if _GROUPED.fullmatch(digits) else digits
    if len(digits) > _LONGEST or (len(digits) > 1 and digits.startswith("0")):
        return " ".join(map(_words, digits))
    return _words(digits)


def _decimal(whole: str, point: str | None, decimals: str | None) -> str:
    if decimals is None:
        return _cardinal(whole)
    zeros = len(decimals) - len(decimals.lstrip("0"))
    said = ["zero"] * zeros + ([_cardinal(decimals[zeros:])] if decimals[zeros:] else [])
    return f"{_cardinal(whole)} {'vírgula' if point == ',' else 'ponto'} {' '.join(said)}"


def _money(whole: str, decimals: str | None, names: tuple[str, str, str, str]) -> str:
    one, several, hundredth, hundredths = names
    if decimals is not None and len(decimals) != 2:
        return f"{_decimal(whole, ',', decimals)} {several}"
    amount = _cardinal(whole)
    # um milhão de euros, but um milhão e cem mil euros
    of = " de" if amount.split()[-1] in ("milhão", "milhões", "bilião", "biliões") else ""
    said = f"{amount}{of} {one if amount == 'um' else several}"
    if decimals is None or decimals == "00":
        return said
    cents = _words(decimals.lstrip("0"))
    return f"{said} e {cents} {hundredth if cents == 'um' else hundredths}"


def _time(hour: int, minute: str | None) -> str:
    feminine = {"um": "uma", "dois": "duas"}
    *tens, last = _words(str(hour)).split()
    said = " ".join([*tens, feminine.get(last, last), "hora" if hour == 1 else "horas"])
    return said if minute is None or minute == "00" else f"{said} e {_words(minute.lstrip('0'))}"


def _ordinal(digits: str, feminine: bool) -> str:
    number = int(re.sub(r"\D", "", digits))
    if not 0 < number < 10**9:
        return _cardinal(digits)
    said = library("num2words", "spelling numbers").num2words(number, lang="pt", to="ordinal")
    return re.sub(r"o\b", "a", said) if feminine else said


def _words(digits: str) -> str:
    return library("num2words", "spelling numbers").num2words(int(digits), lang="pt")
