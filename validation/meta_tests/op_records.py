"""What the records of one op's sweep say."""

from collections.abc import Iterable

from validation.record import Level, Record


def summary_of(records: Iterable[Record]) -> Record:
    """The one record on the whole op."""
    (summary,) = (record for record in records if record.level is Level.RUN and "cases" in record.numbers)
    return summary
