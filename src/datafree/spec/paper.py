"""Where a method comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A citation.

    key: author and year, as in `nagel2019`
    """

    key: str
    title: str
    authors: str
    year: int
    venue: str = ""
    arxiv: str = ""

    def citation(self) -> str:
        """One line for people."""
        where = ", ".join(part for part in (self.venue, f"arXiv:{self.arxiv}" if self.arxiv else "") if part)
        return f"{self.authors}. {self.title}. {where + ', ' if where else ''}{self.year}."

    def bibtex(self) -> str:
        """The same for BibTeX."""
        fields = {"title": self.title, "author": self.authors.replace(", ", " and "), "year": str(self.year)}
        if self.venue:
            fields["booktitle"] = self.venue
        if self.arxiv:
            fields["eprint"] = self.arxiv
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@misc{{{self.key},\n{body}\n}}"
