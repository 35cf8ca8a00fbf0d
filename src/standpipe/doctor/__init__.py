"""The doctor: checks that read the machine, the server, the client, the streams and the log, and
what they found, with the way out."""

from standpipe.doctor.finding import Check, Finding, Level
from standpipe.doctor.run import Report, examine

__all__ = ["Check", "Finding", "Level", "Report", "examine"]
