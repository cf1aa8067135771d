"""The Portuguese Orthographic Agreement of 1990: old spellings and new ones made equal."""

from __future__ import annotations

import re
from collections.abc import Callable

# Consonants that the reform removes in European Portuguese, in parentheses; ^ is the beginning of a word. Where the
# consonant is said (facto, pacto, apto, corrupção) the spelling stays, so that this has to be a list. Where some say it
# and some do not (espectro, conceptual, característica), both spellings are right, and it goes.
_SILENT = re.findall(
    r"\S+",
    """
^a(c)t[oaiur] a(c)tiv ina(c)tu desa(c)tu rea(c)t[oi] rea(c)tu intera(c)t transa(c)t exa(c)t extra(c)t abstra(c)t
coa(c)t detra(c)t retra(c)t contra(c)t contrá(c)til tra(c)tor difra(c)t refra(c)t fra(c)tur infra(c)tor ^fa(c)tur
fa(c)tor manufa(c)tur olfa(c)t olfá(c)t ^tá(c)t sintá(c)t ^ta(c)t[oei] ^ja(c)to ^ca(c)to dida(c)t didá(c)t filá(c)tic
da(c)til galá(c)tic ár(c)tic cara(c)terí cara(c)teriz cará(c)ter proje(c)t projé(c)til obje(c)t abje(c)t subje(c)t
traje(c)t adje(c)t inje(c)t reje(c)t deje(c)t eje(c)t conje(c)t dire(c)t corre(c)t insurre(c)t ere(c)t eré(c)til
^re(c)t[oaiâ] cole(c)t sele(c)t ele(c)tiv ele(c)tr elé(c)tr ^le(c)tiv ecle(c)t eclé(c)tic dile(c)t diale(c)t
dialé(c)tic dislé(c)tic fle(c)t dete(c)t prote(c)t arquite(c)t ^te(c)to ^se(c)tor bisse(c)t ve(c)tor inve(c)tiv
cone(c)t afe(c)t efe(c)t infe(c)t inse(c)t respe(c)tiv espe(c)tad espe(c)tac espe(c)tác espe(c)tr aspe(c)t
perspe(c)tiv prospe(c)t retrospe(c)t introspe(c)t circunspe(c)t inspe(c)t expe(c)t no(c)turn produ(c)t condu(c)tor
redu(c)tor sedu(c)tor indu(c)tor reda(c)tor constru(c)t instru(c)tor destru(c)tor obstru(c)t acupun(c)tur ado(p)t
ba(p)ti[sz] ^ó(p)tic ó(p)tim ^o(p)tim ^egi(p)to exce(p)t susce(p)t perce(p)t rece(p)t conce(p)t interce(p)t ce(p)tiv
^cé(p)tic ^ce(p)tic sé(p)tic epilé(p)tic ^ce(p)tro e(p)ç ado(p)ç exce(p)ci dece(p)ci rece(p)ci conce(p)ci perce(p)ci
""",
)

# Spellings that the agreement leaves to each country, as far as they concern consonants.
_EITHER = ["^fa(c)to", "conta(c)t"]

# Where the first c of cç and cci is said: ficção, facção, fricção, convicção, sucção, cocção, dicção, micção, evicção.
_SAID = r"(?<!\bfi)(?<!\bfa)(?<!\bfri)(?<!convi)(?<!\bsu)(?<!\bco)(?<!\bdi)(?<!\bmi)(?<!\bevi)"

_PREFIXES = (
    "aero|agro|ante|anti|arqui|auto|bio|co|contra|eletro|extra|foto|geo|hidro|infra|intra|macro|maxi|mega|micro|mini|"
    "moto|multi|neo|pluri|poli|proto|pseudo|retro|semi|sobre|socio|supra|tele|termo|tri|ultra|video"
)
_DIFFERENTIAL = ("pára", "pêlo", "pêlos", "pêra", "pólo", "pólos")

Replacement = str | Callable[[re.Match[str]], str]


def _without(consonants: list[str]) -> str:
    """One pattern for every consonant in parentheses between what stands before and after it."""
    parts = []
    for word in consonants:
        before, consonant, after = re.split(r"[()]", word)
        parts.append(rf"(?<={before.replace('^', chr(92) + 'b')}){consonant}(?={after})")
    return "|".join(parts)


def _joined(match: re.Match[str]) -> str:
    prefix, letter = match.groups()
    return prefix + letter * (2 if letter in "rsRS" else 1)


def _without_accents(match: re.Match[str]) -> str:
    return match.group().translate(str.maketrans("áéêóôúüÁÉÊÓÔÚÜ", "aeeoouuAEEOOUU"))


def _acute(match: re.Match[str]) -> str:
    return match.group().translate(str.maketrans("êôÊÔ", "éóÉÓ"))


_REFORM: list[tuple[str, Replacement]] = [
    (_without(_SILENT), ""),
    (rf"{_SAID}c(?=ç|ci(?:on|os))", ""),  # acção, accionar, infeccioso
    (r"ê(?=em\b)", _without_accents),  # lêem, vêem, crêem, dêem
    (r"ô(?=os?\b)", _without_accents),  # vôo, enjôo (Brazil)
    (r"é(?=i[a-zà-ÿ])(?!is\b)", _without_accents),  # idéia, assembléia (Brazil); papéis stays
    (r"ó(?=i[a-zà-ÿ])(?!is\b)", _without_accents),  # jóia, heróico; faróis stays
    (r"(?<=[gq])[üú](?=[eéêií])", _without_accents),  # cinqüenta (Brazil), averigúe
    (r"\b(hei|hás|há|hão)-(?=de\b)", r"\1 "),
    # fim-de-semana, dia-a-dia; a few keep their hyphens (cor-de-rosa), but nothing else is written like them.
    (r"(?<=[a-zà-ÿ])-(d[aeo]s?|em|e|ao?|à)-(?=[a-zà-ÿ])", r" \1 "),
    # Some of these keep their hyphen (micro-ondas), but did not have it before: without it all are equal.
    (rf"\b({_PREFIXES})-([^\W\d_hH])", _joined),  # anti-social and antissocial, auto-estrada
    (rf"\b(?:{'|'.join(_DIFFERENTIAL)})\b", _without_accents),
]
_VARIANTS: list[tuple[str, Replacement]] = [
    (_without(_EITHER), ""),
    (r"[êô](?=[mn][aeiouáéíóúâêô])", _acute),  # ténis and tênis, económico and econômico; têm and contêm stay
]


def _compiled(rules: list[tuple[str, Replacement]]) -> list[tuple[re.Pattern[str], Replacement]]:
    return [(re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in rules]


_COMPILED = {"ao90": _compiled(_REFORM), "ao90_variants": _compiled(_REFORM + _VARIANTS)}
SPELLINGS = tuple(_COMPILED)


def unify_spelling(text: str, spelling: str = "ao90") -> str:
    """Gives spellings from before and after the agreement the same form, for comparison and not for reading.

    A list of word stems and rules, not a dictionary: rare words may be missing. Letters keep their case.

    Args:
        text: Portuguese, composed (NFC).
        spelling: ``"ao90"`` makes equal what the reform changed in Portugal and in Brazil; ``"ao90_variants"`` also
            what it leaves to each of them: facto and fato, económico and econômico.

    Example:
        >>> unify_spelling("A direcção adoptou um projecto óptimo; lêem-no de facto na auto-estrada")
        'A direção adotou um projeto ótimo; leem-no de facto na autoestrada'
    """
    for pattern, replacement in _COMPILED[spelling]:
        text = pattern.sub(replacement, text)
    return text
