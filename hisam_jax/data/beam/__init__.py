"""`prepare` as Apache Beam pipelines, for logs past one machine; the rules are those of the path on one machine.

No process holds the log. The driver holds what every `Dataset.load` holds, the tables of users and items, and with
the chronological protocol one row a distinct time. A worker holds one part of the events, some times as large as
`driver.PART_BYTES` of the log.
"""

import logging

_disabled = logging.root.manager.disable
logging.disable(
    logging.WARNING
)  # Beam remarks at its import that it lacks BigQuery's libraries, which nobody asked for
try:
    import apache_beam  # noqa: F401
finally:
    logging.disable(_disabled)
