//! CLAUSES.md is complete and names tests that exist.
