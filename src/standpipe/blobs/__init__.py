"""Large payloads beside the stream: kept under their SHA-256, named by a reference in the event.

    <folder or URL>/
    ├── ab/cd/abcd…                 a blob; its name is the SHA-256 of its content, in hex
    ├── tmp/<ms since epoch>-<id>   a put in progress, or what one that was killed has left
    └── lock                        put and collect take turns (a local folder alone)

A blob is written under a name in ``tmp``, forced to disk and then renamed, so under its own name
there is never half of one. The name says the content: putting the same content again, also at the
same time, changes nothing, and every reading is verified. docs/blobs.md describes it to users.
"""

from __future__ import annotations

from standpipe.blobs.blobs import BlobFinding, Blobs
from standpipe.blobs.folder import Collected
from standpipe.blobs.reference import BlobReference, references

__all__ = ["BlobFinding", "BlobReference", "Blobs", "Collected", "references"]
