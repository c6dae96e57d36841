"""The rules of the Penn Treebank tokenizer as data: what a token looks like, what must follow it, and how it is written.

The rule whose token and following context are longest wins; of equal ones the first in `RULES` wins. The rules were fitted to the
behaviour of the official program (Stanford CoreNLP 3.4.1), including behaviour that looks accidental, so that scores agree.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from sightline.metrics.ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS, character_class

SOFT_HYPHEN = "\xad"
SPACES = " \t\xa0\u2000-\u200a\u3000"
LINE_ENDS = "\n\r\x0b\x0c\u2028\u2029"

_L, _D = character_class(LETTERS), character_class(DIGITS)
_W = _L + character_class(MARKS) + SOFT_HYPHEN  # what a word may begin with
_GAP = f"[{SPACES}{LINE_ENDS}]"


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of token.

    Attributes:
        starts: possible first characters: `a` a letter, `0` a digit, `*` anything, others literally.
        pattern: group 1 is the token; the rest is context, which counts for the length and is not consumed.
        write: returns how the token is written.
        taken: number of characters consumed; 0 for the whole token.
    """

    starts: str
    pattern: re.Pattern[str]
    write: Callable[[str], str]
    taken: int = 0


# How tokens are written -----------------------------------------------------------------------------------------------------

_APOSTROPHE = "(?:['\x92\u2019]|(?i:&apos;))"
_TICK = "(?:['\x92\u2019`\x91\u2018\u201b]|(?i:&apos;))"
_QUOTES: dict[str, str] = {
    **dict.fromkeys("\x91\u2018\u201b\u2039", "`"),
    **dict.fromkeys("\x92\u2019\u203a", "'"),
    **dict.fromkeys("\x93\u201c\xab", "``"),
    **dict.fromkeys("\x94\u201d\xbb", "''"),
}
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_MONEY = {"\xa2": "cents", "\xa3": "#", **dict.fromkeys("\x80\xa4\u20a0\u20ac", "$")}
_FRACTIONS = {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_NAMED = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}  # entities are known in any case


def _as_is(token: str) -> str:
    return token


def _nothing(token: str) -> str:
    return ""


def _word(token: str) -> str:
    """Removes soft hyphens (a lone one becomes a hyphen) and replaces the entity for `&`."""
    token = re.sub("&amp;", "&", token, flags=re.IGNORECASE)
    return token.replace(SOFT_HYPHEN, "") or "-" if SOFT_HYPHEN in token else token


def _straight(token: str) -> str:
    """Replaces any apostrophe by `'`, and an opening single quote by a backtick."""
    return re.sub("[\x91\u2018\u201b]", "`", re.sub("[\x92\u2019]|&apos;", "'", _word(token)))


def _quotes(token: str) -> str:
    return "".join(_QUOTES.get(character, character) for character in token)


def _round_brackets(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


def _joined(token: str) -> str:
    """Replaces spaces inside a token by no-break spaces."""
    return token.replace(" ", "\xa0")


def _mapped(table: dict[str, str]) -> Callable[[str], str]:
    return lambda token: table.get(token, token)


def _constant(text: str) -> Callable[[str], str]:
    return lambda token: text


def _first(count: int) -> Callable[[str], str]:
    return lambda token: token[:count]


# Parts of patterns ----------------------------------------------------------------------------------------------------------

_ACCENTED = "(?i:&[aeiou](?:acute|grave|uml);)"
_AMPERSAND = "(?:(?i:&amp;)|&)"
_INNER = f"(?:[{_W}{_D}]|{_ACCENTED})"
_PIECE = f"(?:[{_W}]|{_ACCENTED}){_INNER}*"
_WORD = f"{_PIECE}(?:[.!?]{_PIECE})*"
_CLITIC = f"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
_NOT = f"[nN]{_TICK}[tT]"
_PLAIN_HYPHEN = "[-_\u058a\u2010\u2011]"
_COMPOUND_PART = f"(?:[dDoOlL]{_TICK}[{_L}{_D}])?[{_L}{_D}]+"
_COMPOUND = f"{_COMPOUND_PART}(?:{_PLAIN_HYPHEN}{_COMPOUND_PART})*"
_HYPHENATED = r"[A-Za-z0-9][A-Za-z0-9.,\xad]{0,999}+(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+"
_SLASH_PART = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_SLASHED = rf"{_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}}"
_AMPERSANDED = "[A-Z]+(?:(?:[+]|" + _AMPERSAND + ")[A-Z]+)+"
_NUMBER = f"[-+]?(?:[{_D}]*(?:[.:,\xad\u066b\u066c][{_D}]+)+|[{_D}]+)"

_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf"""{_NAME}(?:[ ]*=[ ]*(?:'[^'\n]*'|"[^"\n]*"))?"""
_TAG = rf"<(?:[!?][A-Za-z-][^>\r\n]*|/{_NAME}[ ]*|{_NAME}(?:[ ]+{_ATTRIBUTE})*[ ]*+(?:/[ ]*)?)>"

# Lengths are bounded where otherwise every token would be compared with the complete rest of a text without spaces.
_STOPS = r' \t\n\x0c\r"<>|(){}'  # characters that no address contains
_URL_END = rf"[^{_STOPS}.!?,-]"
_PATH = rf"""(?:/[^ \t\n\x0c\r"<>|()]+{_URL_END})?"""
_URL = rf"(?i:https?)://[^{_STOPS}]+{_URL_END}"
_WWW = rf"(?i:www)\.(?:[^{_STOPS}.!?,]+\.)+[a-zA-Z]{{2,4}}{_PATH}"
_SITE = rf"(?:[^{_STOPS}`'!?$,-_]+\.){{1,99}}(?i:com|net|org|edu){_PATH}"  # `,-_` is a range: digits and capitals are out too
_MAIL = rf"(?:(?i:&lt;)|<)?[a-zA-Z0-9][^{_STOPS}\xa0]{{0,999}}@(?:[^{_STOPS}.\xa0]+\.)*[^{_STOPS}.\xa0]+(?:(?i:&gt;)|>)?"
_ENDINGS = (
    "bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip"
)
_FILE = rf"{_INNER}+(?:\.{_INNER}+)*\.(?i:{_ENDINGS})"

_PHONE = (
    r"(?:\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
    r"|(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
)
_SMILEY = r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]"
_FACE = r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)"


def _any_of(words: str) -> str:
    """Returns a pattern for one of these words in any case, the longest match first."""
    return f"(?i:{'|'.join(sorted(words.split(), key=len, reverse=True))})"


def _any_case_after_first(words: str) -> str:
    return "(?:" + "|".join(f"{word[0]}(?i:{word[1:]})" for word in words.split()) + ")"


# Abbreviations: these keep their full stop everywhere,
_TITLE_WORDS = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs hon "
    "insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen sens sfc sgt "
    "spc st ste supt supts treas vs wm"
)
# these too, but a capital letter glued to them is another token ("Co.X"),
_SHORT_WORDS = (
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga inc "
    "ind intl jan jr jul jun kan kans ky ltd md mich minn mo mon mont neb nev nov oct okla penn plc rd rt sep sept seq sq sr sys "
    "tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
_SHORT_NAMES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"  # these only with a capital, being words otherwise,
_NUMBER_WORDS = "art ca fig figs no nos op pp prop"  # these only before a number,
_ODD_WORDS = "mfg mtg pte ptes ppte pptes pty ptys ppty pptys"  # and these with a case of their own.
ABBREVIATIONS = frozenset(f"{_TITLE_WORDS} {_SHORT_WORDS} {_SHORT_NAMES.lower()} {_NUMBER_WORDS} {_ODD_WORDS}".split())

_TITLES = f"{_any_of(_TITLE_WORDS)}|[Mm][tf]g"
_SHORTENED = f"{_any_of(_SHORT_WORDS)}|{_any_case_after_first(_SHORT_NAMES)}|[Pp][Pp]?[Tt][ye]s?|" + r"(?:[Pp][Hh]|[Ee][Dd])\.[Dd]"
_NUMBERED = _any_of(_NUMBER_WORDS)
# a single letter before one of these ends a sentence and loses its full stop ("plan B. The ...")
_STARTERS = (
    _any_case_after_first(
        "About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other "
        "Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
    )
    + r"|A|M[rRsS]\."
)
_UNION = r"(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R)"

# words with an apostrophe inside or at an end that stay one token
_APOSTROPHE_WORDS = (
    f"{_APOSTROPHE}[nN]{_APOSTROPHE}?",
    f"[lLdDjJ]{_APOSTROPHE}",
    f"(?i:dunkin|somethin|ol){_APOSTROPHE}",
    f"{_APOSTROPHE}(?i:em|till?|cause)",
    f"{_APOSTROPHE}[2-9]0[sS]",
    f"[A-HJ-XZn]{_TICK}[{_L}]{{2,}}",
    f"[{_L}]+[aeiouyAEIOUY]{_TICK}[aeiouA-Z][{_L}]*",
    f"[oO]{_TICK}[oO]",
    r"(?i:cont'd\.|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)",
    f"(?i:cap{_APOSTROPHE}n|c{_APOSTROPHE}est)",
)


def _rule(starts: str, token: str, write: Callable[[str], str] = _word, *, before: str = "", taken: int = 0) -> Rule:
    return Rule(starts, re.compile(f"({token})(?:{before})"), write, taken)


RULES = (
    _rule("a", "(?i:cannot|gonna|gotta|lemme|gimme|wanna)", _first(3), taken=3),
    _rule("'", "'(?i:t)(?i:is|was)", _first(2), taken=2),
    _rule("<", _TAG, _joined),
    _rule("&\x96\x97\u2013\u2014\u2015", "(?i:&(?:md|mdash|ndash);)|[\x96\x97\u2013\u2014\u2015]", _constant("--")),
    _rule("&", "(?i:&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);)", _as_is),
    _rule("a&", _WORD, before=_CLITIC),
    _rule("a", "[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", before=_NOT),
    _rule("a&", _WORD),
    *(_rule("a'&\x92\u2019", word) for word in _APOSTROPHE_WORDS),
    _rule("a", f"[yY]{_APOSTROPHE}", before=f"[{_L}]"),
    _rule("a", _URL, _as_is),
    _rule("a", _WWW, _as_is),
    _rule("*", _SITE, _as_is),
    _rule("a0<&", _MAIL, _as_is),
    _rule("@", "@[a-zA-Z_][a-zA-Z_0-9]*"),
    _rule("#", f"#(?:[{_W}]|{_ACCENTED})+", _as_is),
    _rule("'&\x92\u2019", _CLITIC, _straight, before="[^A-Za-z]"),
    _rule("a", _NOT, _straight),
    _rule("0", f"[{_D}]{{1,2}}[-/][{_D}]{{1,2}}[-/][{_D}]{{2,4}}"),
    _rule("0-+.:,*", _NUMBER),
    _rule("*", "[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    _rule("0", rf"(?:[{_D}]{{1,4}}[- \xa0])?[{_D}]{{1,4}}(?:\\?/|\u2044)[{_D}]{{1,4}}", _joined),
    _rule("*", "[\xbc\xbd\xbe\u2153-\u215e]", _mapped(_FRACTIONS)),
    _rule("-", "-(?i:[lr][rcs]b)-"),
    _rule("a", rf"C\.D\.s|(?i:pro|anti)-|S{_AMPERSAND}(?:P-500|Ls)"),
    _rule("'&\x92\u2019", f"{_APOSTROPHE}[0-9][0-9]", _as_is, before=_GAP),
    _rule("a0", _SLASHED),
    _rule("a", _AMPERSANDED),
    _rule("a$", r"[A-Z]*\$"),
    _rule("*", "[\xa2\xa3\xa4\xa5\x80\u20a0\u20ac]", _mapped(_MONEY)),
    _rule("a", "[A-Za-z]", before=rf"\.{_GAP}+(?:(?:{_STARTERS})|{_TAG}){_GAP}"),
    _rule("a", rf"(?:{_UNION}|[A-Za-z](?:\.[A-Za-z])*)\."),
    _rule("a", _UNION, before=_GAP),
    _rule("a", rf"(?:{_SHORTENED})\.", before="(?s:..)"),
    _rule("a", rf"(?:{_SHORTENED})\."),
    _rule("a", rf"(?:{_TITLES})\."),
    _rule("a", rf"{_NUMBERED}\.", before=f"{_GAP}?[{_D}]"),
    _rule("a0&", _FILE, _as_is, before=f"[{SPACES}{LINE_ENDS}.?!,]"),
    _rule("a0&", rf"(?:{_WORD}|{_COMPOUND}|{_HYPHENATED}|{_AMPERSANDED})\.", before="[,;:\u3001]"),
    _rule("a0", _COMPOUND),
    _rule("a0", _HYPHENATED),
    _rule("<>:;=", _SMILEY, _round_brackets, before="[^A-Za-z0-9]"),
    _rule("a-^=~<>'(", _FACE, _round_brackets),
    _rule("0(+", _PHONE, lambda token: _round_brackets(_joined(token))),
    _rule('"&', '"|(?i:&quot;)', _mapped({'"': "``", "&quot;": "``"}), before="[A-Za-z0-9$]"),
    _rule('"&', '"|(?i:&quot;)', _mapped({'"': "''", "&quot;": "''"})),
    _rule("&", "(?i:&(?:lt|gt|amp);)", lambda token: _NAMED[token.lower()]),
    _rule("'", "'", _constant("`"), before="[A-Za-z][^ \t\n\r\xa0]"),
    _rule("'&\x92\u2019", _CLITIC, _straight),
    _rule("'&", "''?|(?i:&apos;)", _straight),
    _rule("*`", "[\x92\u2019`\u2018-\u201f\x91\x93\x94\u2039\u203a\xab\xbb]{1,2}", _quotes),
    _rule(".\x85\u2026", r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85\u2026]", _constant("...")),
    _rule("-", "-{2,4}(?!-)", _constant("--")),
    _rule("-", "-+"),
    _rule(r"@#_*\?!", r"@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+"),
    _rule("([{)]}", r"[()\[\]{}]", _mapped(_BRACKETS)),
    _rule("a", r"[cC]\+\+|[cCfF]#"),
    _rule("<>", "<<|>>"),
    _rule("*.+,;:%&/\\$<=>~^|", rf"[.+,;:%&/\\$<>=~^|\u2044{character_class(SYMBOLS)}]"),
    _rule("*&", f"(?:[{SPACES}]|(?i:&nbsp;))+", _nothing),
)
