r"""The equations of docstrings as LaTeX: `y = r + gamma (1 - d) V(s')` and the like.

`equation` finds the one that opens a docstring, `typeset` turns it into LaTeX, and `essence` is
what two ways of writing a formula have in common, so that a page and a docstring can be compared.
"""

import re

GREEK = "alpha beta gamma delta epsilon theta lambda mu pi rho sigma tau phi psi".split()
OPERATORS = "log exp min max tanh sum".split()
WORDS = {"mean": r"\operatorname{mean}", "clip": r"\operatorname{clip}", "std": r"\sigma "}
WORDS |= {"lr": r"\eta ", "eps": r"\epsilon ", "bound": "c", "soft_value": r"\text{soft\_value}"}
WORDS |= {"target entropy": r"\text{target entropy}"}
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<arrow><-)|(?P<half>1/2)|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<name>target entropy|[A-Za-z]+(?:_[A-Za-z0-9]+(?:[+-]\d)?)*)|(?P<other>.)"
)
# What says the same in a formula of a page: \sigma and std, \mid and |, ...
SAME = {"sigma": "std", "mu": "mean", "eta": "lr", "epsilon": "eps", "varepsilon": "eps"}
SAME |= {"mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "leftarrow": "<-", "sim": "~"}
SAME |= {"approx": "~", "tilde": "tilde", "prime": "'", "cdot": ""}
SAME |= dict.fromkeys("operatorname mathcal mathrm mathbb text left right displaystyle".split(), "")
SAME |= dict.fromkeys("bigl bigr Bigl Bigr big Big bigm".split(), "")


class NotAnEquationError(ValueError):
    """The text has words that are no symbols."""


def symbol(name: str) -> str:
    """pi_phi, Qbar, m_hat, A_t+1 as LaTeX."""
    if name in WORDS:
        return WORDS[name]
    head, *indices = name.split("_")
    accent = ""
    if head.endswith("bar") and head != "bar":
        head, accent = head.removesuffix("bar"), r"\bar"
    if indices and indices[0] in ("bar", "hat"):
        accent = rf"\{indices.pop(0)}"
    if head in GREEK or head in OPERATORS:
        head = rf"\{head} "
    elif head in WORDS:
        head = WORDS[head]
    elif len(head) > 1:
        raise NotAnEquationError(head)
    if accent:
        head = f"{accent}{{{head.strip()}}}"
    for index in indices:
        letter, sign, number = re.fullmatch(r"(\w+?)(?:([+-])(\d))?", index).groups(default="")
        inner = letter if letter.isdigit() else symbol(letter).strip()
        head += f"_{{{inner}{sign}{number}}}"
    return head


def closing(tokens: list, opening: int) -> int:
    """Where the bracket that opens there is closed."""
    depth = 0
    for place in range(opening, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place][1], 0)
        if depth == 0:
            return place
    raise NotAnEquationError("brackets")


def latex(tokens: list) -> str:
    out, bar_open, place = "", False, 0
    while place < len(tokens):
        kind, text = tokens[place]
        after = tokens[place + 1][1] if place + 1 < len(tokens) else " "
        opens = place == 0 or tokens[place - 1][1][-1] in " (["
        if kind == "space":
            out += " "
        elif kind == "arrow":
            out += r"\leftarrow "
        elif kind == "half":
            out += r"\tfrac12 "
        elif text == "sqrt":
            end = closing(tokens, place + 1)
            out += rf"\sqrt{{{latex(tokens[place + 2 : end])}}}"
            place = end
        elif text == "N" and after == "(":
            out += r"\mathcal{N}"
        elif text == "mean" and after == ",":  # the parameter of a Gaussian
            out += r"\mu "
        elif kind == "name" and after == "~" and tokens[place + 2 : place + 3] != []:
            beyond = tokens[place + 2][1]
            out += rf"\tilde{{{text}}}" if beyond in "|),]" else symbol(text)
            place += beyond in "|),]"
        elif kind == "name":
            out += symbol(text)
        elif text == "^":
            sign = after if after in "+-" else ""
            place += 1 + len(sign)
            power = tokens[place][1]
            out += f"^{{{sign}{power if power.isdigit() else symbol(power).strip()}}}"
        elif text == "~":
            out += r"\sim "
        elif text == "|" and opens:
            out, bar_open = out + r"\lvert ", True
        elif text == "|" and bar_open:
            out, bar_open = out + r"\rvert ", False
        elif text == "|":
            out += r"\mid "
        else:
            out += text
        place += 1
    return out.strip()


def equation(docstring: str) -> str:
    """The equation that opens a docstring, without the words after it; '' if there is none."""
    text = " ".join(docstring.split("\n\n")[0].split("\n"))
    text = re.split(r"  |; (?!mean)| \[(?=[^\]]*\d{4})|: | with |\.$|\. ", text)[0]
    depth = 0
    for place, letter in enumerate(text):  # up to a comma outside of brackets
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            text = text[:place]
            break
    if "->" in text or not re.search(r"[-+=~]", text):  # an arrow stands between shapes
        return ""
    try:
        typeset(text)
    except NotAnEquationError:
        return ""
    return text.strip()


def typeset(text: str) -> str:
    """A plain equation as LaTeX. Raises NotAnEquationError."""
    tokens = [(match.lastgroup, match[0]) for match in TOKEN.finditer(text)]
    return re.sub(" +", " ", latex(tokens))


def displayed(text: str) -> str:
    """A plain equation as LaTeX of its own, in two lines where it is long."""
    if len(text) > 55:
        depth, places = 0, []
        for place, letter in enumerate(text):
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
            if depth == 0 and text[place : place + 3] in (" + ", " - ") and " = " in text[:place]:
                places.append(place)
        if places:
            left, right = text[: places[-1]], text[places[-1] :]
            head, tail = left.split(" = ", 1)
            first = rf"{typeset(head)} = {{}} & {typeset(tail)}"
            return rf"\begin{{aligned}}{first} \\ & {typeset(right.strip())}\end{{aligned}}"
    return typeset(text)


def braced(text: str, opening: int) -> int:
    """Where the brace that opens there is closed."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"a brace is not closed: {text[opening : opening + 40]}")


def replace_terms(text: str, change) -> str:
    r"""Every \at{code}{formula} through change(code, formula)."""
    while (place := text.find(r"\at{")) >= 0:
        middle = braced(text, place + 3)
        if text[middle + 1 : middle + 2] != "{":
            raise ValueError(rf"\at needs two braces: {text[place : place + 40]}")
        end = braced(text, middle + 1)
        new = change(text[place + 4 : middle], text[middle + 2 : end])
        text = text[:place] + new + text[end + 1 :]
    return text


def essence(formula: str) -> str:
    """A formula without spaces, sizes, braces; what stands after a quad is an addition."""
    text = re.split(r"\\q?quad", formula)[0]
    text = re.sub(r"\\(?:begin|end)\{aligned\}|\\\\|&", "", text)
    text = re.sub(r"\\[,;:! ]", "", text)
    text = re.sub(r"\\[td]?frac\{?1\}?\{?2\}?", "1/2", text).replace(r"\_", "_")
    text = re.sub(r"\\([a-zA-Z]+)", lambda match: f" {SAME.get(match[1], match[1])} ", text)
    return re.sub(r"[\s{}]+", "", text).strip(".,")
