//! Conformance cases of the protocols, numbered in `docs/protocols`: transcripts and tables, no privilege.
